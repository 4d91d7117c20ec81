"""Converts FSDP settings of `accelerate launch` to `fsdp` and `fsdp_config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.arguments.fsdp_entries import NEWEST_FSDP
from compat.translate.accelerate_env.override import USE_FSDP, LauncherOverride, is_true, named
from compat.translate.strategy import fsdp_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from transformers import TrainingArguments


def _classes(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


STRATEGIES = ("full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2")
"""Strategies of FSDP 1, in the order in which they are numbered from 1."""


def _strategy(text: str) -> str:
    return STRATEGIES[int(text) - 1] if text.isdigit() else text.lower()


@dataclass(frozen=True)
class Variable:
    """A variable that sets an entry of `fsdp_config`.

    Attributes:
        name: its name, without the prefix `FSDP_`.
        entry: the entry.
        read: text → value.
        version: the version of FSDP that has it; 0 for both.
    """

    name: str
    entry: str
    read: Callable[[str], Any]
    version: int = 0


FSDP = (
    Variable("VERSION", "version", int),
    Variable("SHARDING_STRATEGY", "reshard_after_forward", _strategy, version=1),
    Variable("RESHARD_AFTER_FORWARD", "reshard_after_forward", is_true, version=2),
    Variable("OFFLOAD_PARAMS", "cpu_offload", is_true),
    Variable("AUTO_WRAP_POLICY", "auto_wrap_policy", str),
    Variable("TRANSFORMER_CLS_TO_WRAP", "transformer_layer_cls_to_wrap", _classes),
    Variable("MIN_NUM_PARAMS", "min_num_params", int),
    Variable("BACKWARD_PREFETCH", "backward_prefetch", str, version=1),
    Variable("FORWARD_PREFETCH", "forward_prefetch", is_true, version=1),
    Variable("USE_ORIG_PARAMS", "use_orig_params", is_true, version=1),
    Variable("SYNC_MODULE_STATES", "sync_module_states", is_true, version=1),
    Variable("CPU_RAM_EFFICIENT_LOADING", "cpu_ram_efficient_loading", is_true),
    Variable("ACTIVATION_CHECKPOINTING", "activation_checkpointing", is_true),
    Variable("ACTIVATION_CHECKPOINTING_OFFLOAD", "activation_checkpointing_offload", is_true, version=2),
    Variable("IGNORED_MODULES", "ignored_modules", str),
    Variable("STATE_DICT_TYPE", "state_dict_type", str),
)
"""The FSDP variables of `accelerate launch`, by entry."""

POLICY_OF = {"min_num_params": "SIZE_BASED_WRAP", "transformer_layer_cls_to_wrap": "TRANSFORMER_BASED_WRAP"}
"""Entries that apply to only one policy."""

IMPLIED: dict[str, Any] = {
    "backward_prefetch": "NO_PREFETCH",
    "forward_prefetch": False,
    "sync_module_states": True,
    "use_orig_params": True,
    "cpu_ram_efficient_loading": False,
}
IMPLIED_BY_5: dict[str, Any] = {
    **IMPLIED,
    "version": NEWEST_FSDP,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "state_dict_type": "FULL_STATE_DICT",
    "reshard_after_forward": True,
}
"""Entries that HF says itself where `fsdp` is given, and what it says: under either release, and under 5."""


def fsdp_overrides(
    args: TrainingArguments, variables: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[LauncherOverride]:
    """What the launcher says of FSDP; nothing where the arguments ask for DeepSpeed, which wins."""
    if not is_true(variables.get(USE_FSDP)) or args.deepspeed:
        return
    if args.fsdp:
        yield from _fsdp_beside(args, variables, defaults)
        return
    version = int(variables.get("FSDP_VERSION", "1"))
    yield LauncherOverride("fsdp", True, named(variables, USE_FSDP))
    if "FSDP_VERSION" not in variables:
        yield LauncherOverride("fsdp_config.version", version, ("no FSDP_VERSION, which means 1",))
    for name, entry, value in _entries(variables, version, variables.get("FSDP_AUTO_WRAP_POLICY", "")):
        yield LauncherOverride(f"fsdp_config.{entry}", value, named(variables, name))


def _entries(variables: Mapping[str, str], version: int, policy: str) -> Iterator[tuple[str, str, Any]]:
    """Yield variable, entry and value of the settings for this version and policy."""
    for variable in FSDP:
        name = f"FSDP_{variable.name}"
        counts = variable.version in {0, version} and POLICY_OF.get(variable.entry, policy) == policy
        if name in variables and counts:
            yield name, variable.entry, variable.read(variables[name])


def _fsdp_beside(
    args: TrainingArguments, variables: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[LauncherOverride]:
    """Return the launcher's FSDP settings if the arguments also request FSDP and take precedence."""
    own = fsdp_config(args)
    # Entries that are off or None there are not passed to accelerate, which then reads its variable.
    said = {k: v for k, v in own.items() if v or k not in {"cpu_offload", "min_num_params"}}
    implied = _implied_by_hf(args, own, defaults)
    policy = {**implied, **said}.get("auto_wrap_policy") or variables.get("FSDP_AUTO_WRAP_POLICY", "")
    overruled: list[str] = []
    for name, entry, value in _entries(variables, int(own.get("version", NEWEST_FSDP)), policy):
        if entry in said:
            if said[entry] != value:
                yield LauncherOverride(f"fsdp_config.{entry}", value, named(variables, name), holds=False)
        elif entry not in implied:
            yield LauncherOverride(f"fsdp_config.{entry}", value, named(variables, name))
        elif value != implied[entry]:
            overruled += named(variables, name)
    if overruled:
        yield LauncherOverride("fsdp", True, tuple(overruled), holds=False)


def _implied_by_hf(
    args: TrainingArguments, own: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    if "fsdp_min_num_params" not in defaults:
        return IMPLIED_BY_5
    if "auto_wrap" not in str(args.fsdp):
        return IMPLIED
    policy = POLICY_OF["min_num_params" if own.get("min_num_params") else "transformer_layer_cls_to_wrap"]
    return {**IMPLIED, "auto_wrap_policy": policy}
