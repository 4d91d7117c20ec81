"""accelerate's plugin for FSDP, made also where accelerate leaves it out: on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerate.state import AcceleratorState

PLUGIN_FIELDS = {
    "version": "fsdp_version",
    "reshard_after_forward": "reshard_after_forward",
    "cpu_offload": "cpu_offload",
    "offload_params": "cpu_offload",
    "auto_wrap_policy": "auto_wrap_policy",
    "transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap",
    "min_num_params": "min_num_params",
    "cpu_ram_efficient_loading": "cpu_ram_efficient_loading",
    "activation_checkpointing": "activation_checkpointing",
    "activation_checkpointing_offload": "activation_checkpointing_offload",
    "ignored_modules": "ignored_modules",
    "state_dict_type": "state_dict_type",
    "mixed_precision_policy": "mixed_precision_policy",
}
"""Entry of `fsdp_config` → field of accelerate's plugin, for those that version 2 of FSDP acts on."""

DEFAULTS = {
    "version": 2,
    "reshard_after_forward": True,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "cpu_ram_efficient_loading": False,
    "state_dict_type": "FULL_STATE_DICT",
}
"""What transformers 5 fills in, under both releases."""


def fsdp2_plugin(config: Mapping[str, Any]) -> FullyShardedDataParallelPlugin:
    """accelerate's plugin for version 2.

    Mirrors `transformers.TrainingArguments._process_fsdp_args`.

    Args:
        config: `fsdp_config` without prefixes; what it does not name has the defaults of transformers 5.
    """
    given = {**DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
    if given.get("min_num_params") and "auto_wrap_policy" not in config:
        given["auto_wrap_policy"] = "SIZE_BASED_WRAP"
    fields = {field: _typed(given[key]) for key, field in PLUGIN_FIELDS.items() if key in given}
    return FullyShardedDataParallelPlugin(**fields)


def _typed(value: Any) -> Any:
    """Yes and no, which files and command lines give as words."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def shard(state: AcceleratorState, plugin: FullyShardedDataParallelPlugin) -> None:
    """Have accelerate's state say that models are sharded, and how.

    Args:
        state: the state of one trainer.
        plugin: of either version.
    """
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
