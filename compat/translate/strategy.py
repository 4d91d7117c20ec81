"""Which Lightning strategy a set of arguments asks for, and with which options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compat.errors import ArgumentError
from compat.translate.plan import Setting
from compat.translate.rules import Kind

CLASSES = {
    "single_device": "SingleDeviceStrategy",
    "ddp": "DDPStrategy",
    "fsdp": "FSDPStrategy",
    "model_parallel": "ModelParallelStrategy",
    "deepspeed": "DeepSpeedStrategy",
    "xla": "XLAStrategy",
}
"""Name of a strategy → Lightning's class."""

FSDP_VERSIONS = {1: "fsdp", 2: "model_parallel"}
"""Version of FSDP → the strategy that has it."""

NEWEST_FSDP = max(FSDP_VERSIONS)


@dataclass(frozen=True)
class Entry:
    """What becomes of one entry of `fsdp_config`.

    Attributes:
        key: the entry, without the prefix `fsdp_` that it may have.
        first: the option of FSDPStrategy (version 1); empty where it has none.
        second: what acts on it under ModelParallelStrategy (version 2); empty where nothing does.
        note: why, or how.
    """

    key: str
    first: str
    second: str
    note: str


FSDP_CONFIG: dict[str, Entry] = {
    entry.key: entry
    for entry in (
        Entry("version", "the strategy", "the strategy", "2 where it is not given"),
        Entry(
            "reshard_after_forward",
            "sharding_strategy",
            "fully_shard(reshard_after_forward)",
            "whether parameters are gathered again for the backward",
        ),
        Entry("cpu_offload", "cpu_offload", "fully_shard(offload_policy)", "parameters wait on the CPU"),
        Entry("offload_params", "cpu_offload", "fully_shard(offload_policy)", "parameters wait on the CPU"),
        Entry("auto_wrap_policy", "auto_wrap_policy", "which modules are sharded", "by class, or by size"),
        Entry(
            "transformer_layer_cls_to_wrap",
            "auto_wrap_policy",
            "which modules are sharded",
            "the model's `_no_split_modules` where it is not given",
        ),
        Entry(
            "min_num_params",
            "auto_wrap_policy",
            "which modules are sharded",
            "parameters of a wrapped module",
        ),
        Entry("backward_prefetch", "backward_prefetch", "", "version 2 prefetches by itself"),
        Entry("forward_prefetch", "forward_prefetch", "", "version 2 prefetches by itself"),
        Entry("limit_all_gathers", "limit_all_gathers", "", "version 2 limits them by itself"),
        Entry("use_orig_params", "use_orig_params", "", "version 2 always does"),
        Entry("sync_module_states", "sync_module_states", "", "version 2 loads rank by rank"),
        Entry(
            "cpu_ram_efficient_loading",
            "sync_module_states",
            "loading of the weights",
            "one process loads, the others receive",
        ),
        Entry(
            "activation_checkpointing",
            "activation_checkpointing_policy",
            "checkpointing of the sharded modules",
            "activations are computed again in the backward",
        ),
        Entry(
            "activation_checkpointing_offload",
            "",
            "checkpointing of the sharded modules",
            "activations wait on the CPU",
        ),
        Entry("ignored_modules", "ignored_modules", "fully_shard(ignored_params)", "modules left whole"),
        Entry("state_dict_type", "state_dict_type", "save_distributed_checkpoint", "form of a checkpoint"),
        Entry("mixed_precision_policy", "mixed_precision", "fully_shard(mp_policy)", "types of the shards"),
        Entry("xla", "XLA", "XLA", "sharded by torch_xla"),
        Entry("xla_fsdp_v2", "XLA", "XLA", "sharded by torch_xla's SPMD"),
        Entry("xla_fsdp_grad_ckpt", "XLA", "XLA", "torch_xla's checkpointing"),
        Entry("xla_fsdp_settings", "XLA", "XLA", "torch_xla's own options"),
    )
}
"""Every entry of `fsdp_config`, of both versions."""


def strategy_name(args: Any, processes: int, device_type: str, *, is_spread: bool = False) -> str:
    """The strategy that HF's arguments ask for.

    Args:
        args: HF arguments.
        processes: number of processes of the job.
        device_type: kind of their devices.
        is_spread: whether the model was spread over the processes when it was loaded.
    """
    if getattr(args, "deepspeed", None):
        return "deepspeed"
    if args.fsdp:
        config = fsdp_config(args)
        return "xla" if config.get("xla") else FSDP_VERSIONS[_version(config)]
    if is_spread or getattr(args, "parallelism_config", None) is not None:
        return "model_parallel"
    if device_type in {"xla", "tpu"}:
        return "xla"
    return "ddp" if processes > 1 else "single_device"


def fsdp_config(args: Any) -> dict[str, Any]:
    """`fsdp_config` with the words of `fsdp` among its entries, and without prefixes."""
    given = args.fsdp_config
    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = json.loads(given)
    if not isinstance(given, Mapping):
        given = {"file": given} if given else {}
    config = {key.removeprefix("fsdp_"): value for key, value in given.items()}
    for word in _words(args.fsdp):
        if word == "offload":
            config.setdefault("cpu_offload", True)
        elif word != "auto_wrap":
            config.setdefault("reshard_after_forward", _reshard(word, _version(config)))
    return config


def _words(fsdp: Any) -> list[str]:
    if isinstance(fsdp, str):
        return fsdp.split()
    return [str(getattr(word, "value", word)) for word in fsdp] if isinstance(fsdp, (list, tuple)) else []


def _version(config: Mapping[str, Any]) -> int:
    version = config.get("version", NEWEST_FSDP)
    if str(version) not in map(str, FSDP_VERSIONS):
        msg = f"`fsdp_config={{'version': {version!r}}}`: there are versions 1 and 2. Give one of them."
        raise ArgumentError(msg)
    return int(version)


def _reshard(word: str, version: int) -> Any:
    # Version 2 says by yes or no what version 1 says by the name of a strategy.
    return {"full_shard": True, "shard_grad_op": False}.get(word, word) if version == NEWEST_FSDP else word


def strategy_options(args: Any, name: str) -> dict[str, Any]:
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


def checkpoints_activations(args: Any) -> bool:
    """Whether the model computes activations again in the backward."""
    return bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", None))


def fsdp_settings(args: Any, name: str) -> list[Setting]:
    """One decision for each entry of `fsdp_config`, with the words of `fsdp` among them."""
    if not args.fsdp:
        return []
    return [_fsdp_setting(key, value, name) for key, value in fsdp_config(args).items()]


def _fsdp_setting(key: str, value: Any, name: str) -> Setting:
    entry = FSDP_CONFIG.get(key, Entry(key, "", "", "handed on as it is"))
    target = entry.first if name == "fsdp" else entry.second
    strategy = CLASSES[name]
    return Setting(
        field=f"fsdp_config.{key}",
        value=value,
        kind=Kind.STRATEGY if target else Kind.RETIRED,
        target=f"{strategy}({target}={{}})" if name == "fsdp" else f"{strategy}: {target}",
        becomes=value,
        note=entry.note,
        # HF fills in what is not given.
        changed=bool(value) or key not in {"min_num_params", "xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt"},
    )
