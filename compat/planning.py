"""`compat.plan`: the translation of a set of arguments, for this machine or for another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compat.arguments.checks import nearest
from compat.arguments.names import native_defaults
from compat.arguments.resolve import resolve
from compat.arguments.seq2seq import Seq2SeqTrainingArguments
from compat.errors import ArgumentError
from compat.translate import LightningPlan
from compat.translate import plan as translated
from compat.upstream.choices import CHOICES
from compat.upstream.environment import Facts


def plan(
    args: Any,
    model: Any = None,
    *,
    accelerator: str | None = None,
    devices: int | None = None,
    num_nodes: int = 1,
) -> LightningPlan:
    """What becomes of HF arguments under Lightning. Nothing is built, and no device is touched.

    Args:
        args: an instance of `TrainingArguments`, HF's or ours, or a dict of arguments by any generation's
            names.
        model: the model, where there is one: it knows which of its modules are sharded.
        accelerator: kind of the devices, as in `lightning.pytorch.Trainer`; this machine's where None.
        devices: number of devices on a machine; one, or as many as the launcher has started, where None.
        num_nodes: number of machines.

    Returns:
        The plan.

    Raises:
        ArgumentError: there is no such kind or number of devices, or every problem of the arguments, at once.
    """
    _check_machine(accelerator, devices, num_nodes)
    if isinstance(args, Mapping):
        args = resolve(args, native_defaults(Seq2SeqTrainingArguments), CHOICES)
    elif accelerator is None and devices is None:
        return translated(args, Facts.of(args), model)
    return translated(args, _facts(args, accelerator, devices or 1, num_nodes), model)


ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "hpu", "mps", "npu", "tpu", "xla", "xpu")
"""Kinds of devices that a plan can be made for."""


def _check_machine(accelerator: str | None, devices: int | None, num_nodes: int) -> None:
    problems = [
        f"`{name}={value}`: too few. Give 1 or more."
        for name, value in (("devices", devices), ("num_nodes", num_nodes))
        if value is not None and value < 1
    ]
    if accelerator is not None and accelerator not in ACCELERATORS:
        guess = nearest(accelerator, ACCELERATORS) or f"Give one of {', '.join(ACCELERATORS)}."
        problems.append(f"`accelerator={accelerator!r}`: not a kind of device. {guess}")
    if problems:
        raise ArgumentError("\n".join(problems))


def _facts(args: Any, accelerator: str | None, devices: int, num_nodes: int) -> Facts:
    wanted = {"gpu": "cuda", None: Facts.device_type_here(), "auto": Facts.device_type_here()}
    kind = "cpu" if args.use_cpu else wanted.get(accelerator, accelerator)
    return Facts(device_type=str(kind), devices=devices, num_nodes=num_nodes)
