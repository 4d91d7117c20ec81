"""`compat.plan`: the translation of a set of arguments, for this machine or for another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from compat.arguments.checks import nearest
from compat.arguments.machine import XLA
from compat.arguments.names import native_defaults
from compat.arguments.resolve import resolve
from compat.arguments.seq2seq import Seq2SeqTrainingArguments
from compat.errors import ArgumentError
from compat.translate import LightningPlan
from compat.translate import plan as translated
from compat.upstream.choices import CHOICES
from compat.upstream.environment import Facts

if TYPE_CHECKING:
    import os

    from torch import nn
    from transformers import TrainingArguments

    from compat.upstream.accelerate_config import Launch


def plan(
    args: TrainingArguments,
    model: nn.Module | None = None,
    *,
    accelerator: str | None = None,
    devices: int | None = None,
    num_nodes: int | None = None,
    accelerate_config: str | os.PathLike[str] | None = None,
) -> LightningPlan:
    """Translate HF arguments to a plan for Lightning. Nothing is built, and no device is used.

    Args:
        args: an instance of `TrainingArguments`, HF's or ours, or a dict of arguments by any generation's
            names.
        model: the model, if it exists: it may define which of its modules are sharded.
        accelerator: kind of the devices, as in `lightning.pytorch.Trainer`; this machine's if None.
        devices: number of devices on a machine; if None, one, or as many as the launcher has started.
        num_nodes: number of machines; one if None.
        accelerate_config: a file written by `accelerate config`, for a job that `accelerate launch
            --config_file` starts; the other parameters take precedence.

    Returns:
        The plan.

    Raises:
        ArgumentError: the kind or number of devices is invalid, the file is no such configuration, or the
            arguments have problems, all of which are listed.
    """
    _check_machine(accelerator, devices, num_nodes)
    if isinstance(args, Mapping):
        args = resolve(args, native_defaults(Seq2SeqTrainingArguments), CHOICES)
    elif accelerator is None and devices is None and accelerate_config is None:
        # A plan assumes a correctly started job; the Trainer checks whether it was.
        return translated(args, dataclasses.replace(Facts.of(args), here=None), model)
    launch = None
    if accelerate_config is not None:
        from compat.upstream.accelerate_config import read_accelerate_config

        launch = read_accelerate_config(accelerate_config)
    return translated(args, _facts(args, accelerator, devices, num_nodes, launch), model)


ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "hpu", "mps", "npu", "tpu", "xla", "xpu")
"""Kinds of devices that a plan can be made for."""


def _check_machine(accelerator: str | None, devices: int | None, num_nodes: int | None) -> None:
    problems = [
        f"`{name}={value}`: too few. Give 1 or more."
        for name, value in (("devices", devices), ("num_nodes", num_nodes))
        if value is not None and value < 1
    ]
    known = (*ACCELERATORS, Facts.device_type_here())
    if accelerator is not None and accelerator not in known:
        guess = nearest(accelerator, known) or f"Give one of {', '.join(ACCELERATORS)}."
        problems.append(f"`accelerator={accelerator!r}`: not a kind of device. {guess}")
    if problems:
        raise ArgumentError("\n".join(problems))


def _facts(
    args: TrainingArguments,
    accelerator: str | None,
    devices: int | None,
    num_nodes: int | None,
    launch: Launch | None,
) -> Facts:
    here = Facts.device_type_here()
    wanted = accelerator or (launch.device_type if launch else None) or "auto"
    kind = (
        "cpu" if args.use_cpu else {"gpu": "cuda", "tpu": XLA, "auto": here, here: here}.get(wanted, wanted)
    )
    return Facts(
        device_type=kind,
        devices=devices or (launch.devices if launch else 1),
        num_nodes=num_nodes or (launch.num_nodes if launch else 1),
        launched=launch.variables if launch else {},
    )
