"""Determines the Lightning strategy of a set of arguments, and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compat.arguments import deepspeed_entries, fsdp_entries
from compat.arguments.deepspeed_entries import AUTO, FILLED, FILLED_LATER, leaves
from compat.arguments.fields import shown
from compat.arguments.files import is_on
from compat.arguments.fsdp_entries import CHOSEN, FSDP_CONFIG
from compat.arguments.machine import XLA
from compat.arguments.sharding import READ, mesh_sizes
from compat.errors import ArgumentError
from compat.translate.rules import Kind
from compat.translate.setting import Setting

if TYPE_CHECKING:
    from transformers import TrainingArguments

CLASSES = {
    "single_device": "SingleDeviceStrategy",
    "ddp": "DDPStrategy",
    "fsdp": "FSDPStrategy",
    "model_parallel": "ModelParallelStrategy",
    "deepspeed": "DeepSpeedStrategy",
    "xla": "XLAStrategy",
    "single_xla": "SingleDeviceXLAStrategy",
}
"""Name of a strategy → Lightning's class."""

OF_ONE_DEVICE = ("single_device", "single_xla")
"""Strategies of one process on one device."""

UNTRIED = {
    "xla": "not tried: the tests have no TPU, and a CPU is a single XLA device",
    "single_xla": "tried with XLA on a CPU, not on a TPU",
}
"""Name of a strategy → what about it has not been tried."""

AS_IT_IS = "DeepSpeed's own; handed on as it is"

FSDP_VERSIONS = {1: "fsdp", fsdp_entries.NEWEST_FSDP: "model_parallel"}
"""Version of FSDP → the strategy that has it."""

NEWEST_FSDP = max(FSDP_VERSIONS)


def strategy_name(
    args: TrainingArguments, processes: int, device_type: str, *, is_spread: bool = False
) -> str:
    """Return the strategy that HF's arguments select.

    Args:
        args: HF arguments.
        processes: number of processes of the job.
        device_type: kind of their devices.
        is_spread: whether the model was sharded over the processes when it was loaded.
    """
    if getattr(args, "deepspeed", None):
        return "deepspeed"
    if args.fsdp:
        config = fsdp_config(args)
        version = int(config.get("version", NEWEST_FSDP))
        return _on_xla(processes) if is_on(config.get("xla")) else FSDP_VERSIONS[version]
    mesh = mesh_sizes(getattr(args, "parallelism_config", None))
    if is_spread or any(size > 1 for size in mesh.values()):
        return "model_parallel"
    if device_type == XLA:
        return _on_xla(processes)
    return "ddp" if processes > 1 else "single_device"


def _on_xla(processes: int) -> str:
    return "xla" if processes > 1 else "single_xla"


def fsdp_config(args: TrainingArguments) -> dict[str, Any]:
    """Return `fsdp_config` with the words of `fsdp` as entries, and without prefixes.

    Raises:
        ArgumentError: the file that it names cannot be read.
    """
    try:
        return fsdp_entries.config_of(args.fsdp, args.fsdp_config)
    except ValueError as error:
        msg = f"`{shown('fsdp_config', args.fsdp_config)}`: {error}"
        raise ArgumentError(msg) from error


def mesh_target(config: object, name: str) -> tuple[str, str]:
    """Return what `parallelism_config` becomes, and why.

    Args:
        config: accelerate's `ParallelismConfig`, or its sizes by name.
        name: the strategy.
    """
    sizes = mesh_sizes(config)
    if (size := sizes["sp_size"]) > 1:
        return (
            f"{CLASSES[name]}: UlyssesSPAttentionHF(sequence_parallel_size={size})",
            f"sequence parallel: {size} processes share each sequence",
        )
    if (size := sizes["cp_size"]) > 1:
        return (
            f"{CLASSES[name]}: context_parallel",
            f"context parallel: {size} processes share the context of attention; not tried: torch has no "
            "kernels for it on a CPU",
        )
    return CLASSES[name], "the sizes of its mesh"


def strategy_options(args: TrainingArguments, name: str) -> dict[str, Any]:
    """Options of the strategy, by the names of its class."""
    group = {"process_group_backend": args.ddp_backend, "timeout": args.ddp_timeout}
    if name == "ddp":
        unused = args.ddp_find_unused_parameters
        options = {
            **group,
            "find_unused_parameters": not checkpoints_activations(args) if unused is None else unused,
            "bucket_cap_mb": args.ddp_bucket_cap_mb,
            "broadcast_buffers": args.ddp_broadcast_buffers,
            "static_graph": getattr(args, "ddp_static_graph", None),
        }
    elif name == "deepspeed":
        options = {"config": args.deepspeed}
    elif name in {"fsdp", "model_parallel"}:
        options = {**group, **fsdp_config(args)}
    else:
        options = {}
    return {key: value for key, value in options.items() if value is not None}


def checkpoints_activations(args: TrainingArguments) -> bool:
    """Whether the model computes activations again in the backward."""
    return bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", None))


def fsdp_settings(args: TrainingArguments, name: str) -> list[Setting]:
    """One decision for each entry of `fsdp_config`, with the words of `fsdp` among them."""
    if not args.fsdp:
        return []
    # HF's own arguments of transformers 5 take a size only along with the policy.
    told = getattr(args, "fsdp_plugin_args", None)
    is_idle = told is not None and "SIZE" not in str(told.get("auto_wrap_policy"))
    idle = frozenset({"min_num_params"} if is_idle else ())
    return [_fsdp_setting(key, value, name, idle) for key, value in fsdp_config(args).items()]


BY_SIZE_ALONE = "no effect without 'auto_wrap_policy': 'SIZE_BASED_WRAP'"
ON_XLA = ("xla", "single_xla")
ACT_WITH_FSDP = ("fsdp", "model_parallel", *ON_XLA)
"""Strategies that use `fsdp_config`."""


def _fsdp_setting(key: str, value: object, name: str, idle: frozenset[str]) -> Setting:
    entry, strategy = FSDP_CONFIG[key], CLASSES.get(name, name)
    targets = {"fsdp": entry.first, "model_parallel": entry.second, **dict.fromkeys(ON_XLA, entry.xla)}
    target = targets.get(name, "")
    note = entry.note
    if key in idle and name not in ON_XLA:
        target, note = "", BY_SIZE_ALONE
    elif name not in ACT_WITH_FSDP or (name in ON_XLA and not target):
        note = f"no effect with {strategy}"
    elif key == "version" and name == "fsdp":
        note = f"{', '.join(fsdp_entries.OF_FIRST)} are of version 1 alone"
    return Setting(
        field=f"fsdp_config.{key}",
        value=value,
        kind=Kind.STRATEGY if target else Kind.RETIRED,
        target=_target(strategy, target, is_option=name == "fsdp"),
        becomes=value,
        note=note,
        # HF fills in missing entries.
        changed=bool(value) or key not in {"min_num_params", "xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt"},
    )


def _target(strategy: str, target: str, *, is_option: bool) -> str:
    if target == CHOSEN:
        return strategy
    return f"{strategy}({target}={{}})" if is_option else f"{strategy}: {target}"


def deepspeed_settings(args: TrainingArguments) -> list[Setting]:
    """One decision for each entry of DeepSpeed's configuration, and what fills in the "auto" ones."""
    if not args.deepspeed:
        return []
    values = {name: getattr(args, name, None) for name in READ}
    return [
        _deepspeed_setting(path, said, values)
        for path, said in leaves(deepspeed_entries.config_of(args.deepspeed))
    ]


def _deepspeed_setting(path: str, said: object, values: dict[str, Any]) -> Setting:
    becomes, note = said, AS_IT_IS
    if said == AUTO:
        filled = FILLED.get(path)
        becomes = filled.of(values) if filled else AUTO
        note = f"filled in by `{'`, `'.join(filled.fields)}`" if filled else FILLED_LATER.get(path, AS_IT_IS)
    return Setting(
        field=f"deepspeed.{path}",
        value=said,
        kind=Kind.STRATEGY,
        target=f"DeepSpeed's {path}={{}}",
        becomes=becomes,
        note=note,
        changed=True,
    )
