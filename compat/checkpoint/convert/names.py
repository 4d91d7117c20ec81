"""Names of weights: as `save_pretrained` writes them, and inside a LightningModule."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

    from compat.checkpoint.convert.skeleton import Skeleton

ADAPTER = "default"
"""PEFT's default name of an adapter."""

OF_ADAPTERS = "base_model.model."
"""The prefix that PEFT adds to the names of wrapped modules."""

_LAYER = re.compile(r"\.(lora_[A-Z]|lora_embedding_[A-Z]|lora_magnitude_vector|vera_lambda_\w|ia3_l)(?=\.|$)")
"""The part of the names of an adapter's weights that is followed by the adapter's name in memory."""


def live(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename weights of adapters from the names in their file to those in memory."""
    return {_LAYER.sub(rf".\1.{ADAPTER}", name): tensor for name, tensor in weights.items()}


def saved(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename weights of adapters from the names in memory to those in their file; omit all others."""
    marked = re.compile(rf"\.{ADAPTER}(?=\.|$)")
    adapters = {name: tensor for name, tensor in weights.items() if marked.search(name)}
    return {marked.sub("", name): tensor for name, tensor in (adapters or weights).items()}


def prefix_of(path: Path, names: Sequence[str], skeleton: Skeleton | None, told: str | None) -> str:
    """Find the prefix of the model's names among the names of a LightningModule.

    Args:
        path: the checkpoint.
        names: the names in it.
        skeleton: the skeleton of the model, if its configuration is known.
        told: a given prefix, which is only checked.

    Raises:
        CheckpointError: no prefix matches, or several do.
    """
    if told is not None:
        prefix = told if not told or told.endswith(".") else f"{told}."
        if not any(name.startswith(prefix) for name in names):
            _refuse(path, f"nothing in it begins with `{prefix}`", names)
        return prefix
    if any(OF_ADAPTERS in name for name in names):
        names = [name.partition(OF_ADAPTERS)[0] + OF_ADAPTERS for name in names if OF_ADAPTERS in name]
        return _common(names).removesuffix(OF_ADAPTERS)
    if skeleton is None:
        return _common(names)
    needed = list(skeleton.ties) + [(name,) for name in skeleton.names]
    tied = {name for tie in skeleton.ties for name in tie}
    groups = [group for group in needed if len(group) > 1 or group[0] not in tied]
    have = set(names)
    ends = groups[0]
    found = {name.removesuffix(end) for name in names for end in ends if name.endswith(end)}
    fitting = sorted(p for p in found if all(any(p + name in have for name in group) for group in groups))
    if len(fitting) != 1:
        why = f"{len(fitting)} prefixes make its names those of the model" + "".join(
            f", `{p}`" for p in fitting
        )
        _refuse(path, why, names)
    return fitting[0]


def _common(names: Iterable[str]) -> str:
    """Return the longest dotted prefix that all names share."""
    first, last = min(names), max(names)
    same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind(".", 0, same) + 1]


def _refuse(path: Path, why: str, names: Sequence[str]) -> None:
    some = ", ".join(f"`{name}`" for name in names[:3])
    msg = (
        f"`{path}`: {why}; it has {some} and so on. Give what stands before the model's names as `--prefix`, "
        "and its configuration as `--config`."
    )
    raise CheckpointError(msg)
