"""A table of the optimizers that `optim` names and their requirements, for checks, docs and tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import TrainingArguments


@dataclass(frozen=True)
class Optimizer:
    """An optimizer that HF knows by a name.

    Attributes:
        module: where HF imports it from; empty for those of torch and of transformers.
        package: what to install for it.
        device: the only kind of device that it works on; empty if any works.
        instead: the nearest `optim` without its conditions.
        steps_in_backward: whether weights change in the backward pass: "layer by layer", in optimizers of
            their own; "fused", in the hooks of one without a step; empty if a step follows.
        cannot: why no run can use it.
        releases: the releases of transformers that have the name, if not all do.
        never_on: a kind of device that it does not work on; empty if there is none.
    """

    module: str = ""
    package: str = ""
    device: str = ""
    instead: str = "adamw_torch"
    steps_in_backward: str = ""
    cannot: str = ""
    releases: str = ""
    never_on: str = ""


_BITSANDBYTES = Optimizer("bitsandbytes", "bitsandbytes")
_TORCHAO = Optimizer("torchao", "torchao")
_SCHEDULE_FREE = Optimizer("schedulefree", "schedulefree")
_GALORE = Optimizer("galore_torch", "galore-torch")
_APOLLO = Optimizer("apollo_torch", "apollo-torch")

OPTIMIZERS: dict[str, Optimizer] = {
    **dict.fromkeys(("adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop"), Optimizer()),
    "adamw_torch_fused": Optimizer(never_on="xla"),
    "adamw_torch_xla": Optimizer("torch_xla", "torch_xla", "xla"),
    "adamw_torch_npu_fused": Optimizer("torch_npu", "torch_npu", "npu"),
    "adamw_apex_fused": Optimizer("apex", "NVIDIA's apex", "cuda", "adamw_torch_fused", releases="4.53"),
    "adamw_anyprecision": Optimizer("torchdistx", "torchdistx"),
    "adamw_torch_4bit": _TORCHAO,
    "adamw_torch_8bit": _TORCHAO,
    **dict.fromkeys(
        (
            *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
            *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
            *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
            *("rmsprop_bnb", "rmsprop_bnb_32bit", "rmsprop_bnb_8bit"),
        ),
        _BITSANDBYTES,
    ),
    "galore_adamw": _GALORE,
    "galore_adafactor": _GALORE,
    "galore_adamw_8bit": Optimizer("galore_torch", "galore-torch", "cuda", "galore_adamw"),
    "galore_adamw_layerwise": Optimizer(
        "galore_torch", "galore-torch", instead="galore_adamw", steps_in_backward="layer by layer"
    ),
    "galore_adamw_8bit_layerwise": Optimizer(
        "galore_torch", "galore-torch", "cuda", "galore_adamw_8bit", "layer by layer"
    ),
    "galore_adafactor_layerwise": Optimizer(
        "galore_torch",
        "galore-torch",
        instead="galore_adafactor",
        steps_in_backward="layer by layer",
        cannot="transformers gives it a learning rate and `relative_step`, which exclude each other",
    ),
    "apollo_adamw": _APOLLO,
    "apollo_adamw_layerwise": Optimizer(
        "apollo_torch", "apollo-torch", instead="apollo_adamw", steps_in_backward="layer by layer"
    ),
    "lomo": Optimizer("lomo_optim", "lomo-optim", instead="sgd", steps_in_backward="fused"),
    "adalomo": Optimizer("lomo_optim", "lomo-optim", "cuda", "adafactor", "fused"),
    "grokadamw": Optimizer("grokadamw", "grokadamw"),
    "schedule_free_radam": _SCHEDULE_FREE,
    "schedule_free_adamw": _SCHEDULE_FREE,
    "schedule_free_sgd": _SCHEDULE_FREE,
    "stable_adamw": Optimizer("optimi", "torch-optimi", releases="5"),
}
"""Value of `optim` → its requirements."""


def optimizer_problems(args: TrainingArguments, device: torch.device) -> list[str]:
    """Return the problems with the optimizer that `optim` names, each with the remedy.

    Args:
        args: HF's arguments.
        device: the device of the model.
    """
    name = getattr(args.optim, "value", args.optim)
    optimizer = OPTIMIZERS.get(name)
    return [] if optimizer is None else list(_problems(name, optimizer, args, device))


def _problems(
    name: str, optimizer: Optimizer, args: TrainingArguments, device: torch.device
) -> Iterator[str]:
    instead = f"optim={optimizer.instead!r}"
    if optimizer.cannot:
        yield f"`optim={name!r}`: {optimizer.cannot}. Give {instead}."
        return
    if not _is_installed(optimizer.module):
        yield (
            f"`optim={name!r}`: it comes with {optimizer.package}, which is not installed. Install it, or "
            f"give {instead}."
        )
        return
    if optimizer.device not in ("", device.type):
        yield (
            f"`optim={name!r}`: {optimizer.package} has it for {optimizer.device} alone, and the model is on "
            f"{device.type}. Give {instead}."
        )
    if optimizer.never_on == device.type:
        yield (
            f"`optim={name!r}`: torch has no fused step for {device.type}, where the model is. HF takes this "
            f"optimizer where none is given. Give {instead}."
        )
    if not optimizer.steps_in_backward:
        return
    if args.world_size > 1:
        yield (
            f"`optim={name!r}` with {args.world_size} processes: weights change in the backward pass, each "
            f"process's by its own gradients. Train with one, or give {instead}."
        )
    if optimizer.steps_in_backward == "layer by layer" and args.gradient_accumulation_steps != 1:
        yield (
            f"`gradient_accumulation_steps={args.gradient_accumulation_steps}` with `optim={name!r}`: layers "
            f"are stepped in the backward pass of each batch. Leave it at 1, or give {instead}."
        )
    if optimizer.steps_in_backward == "fused" and args.fp16:
        yield (
            f"`fp16=True` with `optim={name!r}`: weights change in the backward pass, ahead of any unscaling "
            f"of gradients. Give bf16=True, or {instead}."
        )


def _is_installed(module: str) -> bool:
    return not module or module in sys.modules or find_spec(module) is not None
