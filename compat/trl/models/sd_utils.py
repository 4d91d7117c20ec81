"""Conversion of LoRA weight names, from those of PEFT and of older diffusers to those that diffusers saves.

Mirrors `trl/models/sd_utils.py` of TRL 0.7.11.
"""

from __future__ import annotations

import enum
from typing import Any

from compat.errors import ArgumentError


class StateDictType(enum.Enum):
    """The naming schemes of weights."""

    DIFFUSERS_OLD = "diffusers_old"
    PEFT = "peft"


_OF_TEXT = ("q", "k", "v", "out")
_OF_IMAGES = ("to_q", "to_k", "to_v", "to_out.0")
_SIDES = {"lora_A": "down", "lora_B": "up"}

PEFT_TO_DIFFUSERS = {
    **{
        f".{name}_proj.{theirs}": f".{name}_proj.lora_linear_layer.{side}"
        for name in _OF_TEXT
        for theirs, side in _SIDES.items()
    },
    **{f"{name}.{theirs}": f"{name}.lora.{side}" for name in _OF_IMAGES for theirs, side in _SIDES.items()},
}
"""Part of PEFT's names → part of diffusers' names, for text encoders and U-Nets."""

DIFFUSERS_OLD_TO_DIFFUSERS = {
    f".to_{name}_lora.{side}": f".{name}_proj.lora_linear_layer.{side}"
    for name in _OF_TEXT
    for side in _SIDES.values()
}
"""Part of older diffusers' names → part of current diffusers' names."""

DIFFUSERS_STATE_DICT_MAPPINGS = {
    StateDictType.DIFFUSERS_OLD: DIFFUSERS_OLD_TO_DIFFUSERS,
    StateDictType.PEFT: PEFT_TO_DIFFUSERS,
}
"""Naming scheme → its mapping to diffusers' names."""

KEYS_TO_ALWAYS_REPLACE = {".processor.": "."}
"""Replacements made first in every name."""


def convert_state_dict(state_dict: dict[str, Any], mapping: dict[str, str]) -> dict[str, Any]:
    """Rename weights: in each name, replace the first part of `mapping` that it contains.

    Args:
        state_dict: weights by name.
        mapping: part of a name → its replacement.
    """
    return {_renamed(name, mapping): weight for name, weight in state_dict.items()}


def _renamed(name: str, mapping: dict[str, str]) -> str:
    for old, new in KEYS_TO_ALWAYS_REPLACE.items():
        name = name.replace(old, new)
    part = next((part for part in mapping if part in name), None)
    return name if part is None else name.replace(part, mapping[part])


def convert_state_dict_to_diffusers(
    state_dict: dict[str, Any], original_type: StateDictType | None = None, **kwargs: object
) -> dict[str, Any]:
    """Return LoRA weights under the names that diffusers saves.

    Args:
        state_dict: weights by name, with the names of PEFT, of older diffusers, or of diffusers.
        original_type: the naming scheme; inferred from the names if omitted.
        kwargs: `adapter_name`, which PEFT includes in its names.

    Raises:
        ValueError: the format of the names is unknown.
    """
    adapter = kwargs.pop("adapter_name", None)
    kind = original_type or _kind(state_dict, "" if adapter is None else f".{adapter}")
    if kind is None:
        return state_dict
    if kind not in DIFFUSERS_STATE_DICT_MAPPINGS:
        known = [each.value for each in DIFFUSERS_STATE_DICT_MAPPINGS]
        msg = f"`original_type={kind}`: Original type {kind} is not supported. Choose among {known}."
        raise ArgumentError(msg)
    return convert_state_dict(state_dict, DIFFUSERS_STATE_DICT_MAPPINGS[kind])


def _kind(state_dict: dict[str, Any], adapter: str) -> StateDictType | None:
    """Infer the naming scheme; None for the names that diffusers saves."""

    def has(part: str) -> bool:
        return any(part in name for name in state_dict)

    if has("to_out_lora"):
        return StateDictType.DIFFUSERS_OLD
    if has(f".lora_A{adapter}.weight"):
        return StateDictType.PEFT
    if has("lora_linear_layer"):
        return None
    msg = (
        f"`state_dict`: Could not automatically infer state dict type from names as {[*state_dict][:1]}. "
        "Give `original_type`."
    )
    raise ArgumentError(msg)
