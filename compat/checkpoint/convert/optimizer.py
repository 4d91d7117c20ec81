"""Optimizer states: parameters are numbers under HF and Lightning, and names in sharded checkpoints."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from compat.checkpoint.convert.common import Checkpoint
    from compat.checkpoint.convert.skeleton import Skeleton


OPTIMIZERS, SCHEDULERS = "optimizers", "schedulers"
"""The entries of `optimizer.pt` and `scheduler.pt` of a module that optimizes manually: a list of states."""

NO_GROUPS: dict[str, Any] = {"state": {}, "param_groups": []}
"""The rest of such an `optimizer.pt`."""

_LIKE_THE_PARAMETER = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""Entries of a state that have the shape of their parameter."""


def numbered(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str] | None]:
    """Convert a state to one whose parameters are numbers, counted over its groups.

    Args:
        state: the state, with numbers or names.

    Returns:
        The state, and the names in the order of their numbers; None if it already had numbers.
    """
    names = list(chain.from_iterable(group["params"] for group in state["param_groups"]))
    if not any(isinstance(name, str) for name in names):
        return dict(state), None
    number = {name: place for place, name in enumerate(names)}
    return _renamed(state, number), names


def named(checkpoint: Checkpoint, skeleton: Skeleton | None) -> dict[str, Any]:
    """Return the state of a checkpoint's optimizer, with names for its parameters.

    Args:
        checkpoint: a checkpoint with an optimizer.
        skeleton: the skeleton of its model.

    Raises:
        CheckpointError: the numbers cannot be mapped to parameters.
    """
    state: dict[str, Any] = checkpoint.optimizer or {}
    if OPTIMIZERS in state:
        msg = (
            f"`{checkpoint.source}`: it holds the states of a module that optimizes manually, and shards "
            "hold one optimizer. Convert it `--to lightning` or `--to pretrained`."
        )
        raise CheckpointError(msg)
    names = checkpoint.parameters
    if names is None:
        if skeleton is None:
            _refuse(checkpoint.source, "its configuration is missing, or not of a model of transformers'")
        names = _names(state, skeleton, checkpoint.source)
    order = chain.from_iterable(group["params"] for group in state["param_groups"])
    return _renamed(state, dict(zip(order, names, strict=True)))


def _renamed(state: Mapping[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        **state,
        "state": {new[key]: value for key, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [new[key] for key in group["params"]]} for group in state["param_groups"]
        ],
    }


def _names(state: Mapping[str, Any], skeleton: Skeleton | None, source: Path) -> list[str]:
    """Return the names of parameters, in the order in which HF's Trainer passes them to an optimizer."""
    assert skeleton is not None
    groups = [group["params"] for group in state["param_groups"]]
    wanted: list[dict[str, torch.Size]] = list(skeleton.groups)
    if len(groups) == 1:
        wanted = [{name: shape for group in skeleton.groups for name, shape in group.items()}]
    sizes, expected = [len(group) for group in groups], [len(group) for group in wanted]
    if sizes != expected:
        _refuse(source, f"its optimizer has groups of {sizes} parameters, and HF's would have {expected}")
    shapes = {name: shape for group in wanted for name, shape in group.items()}
    for key, name in zip(chain.from_iterable(groups), shapes, strict=True):
        for what, value in state["state"].get(key, {}).items():
            is_like_it = (
                not isinstance(value, torch.Tensor) or value.numel() == 1 or value.shape == shapes[name]
            )
            if not is_like_it and what in _LIKE_THE_PARAMETER:
                _refuse(
                    source, f"the `{what}` of parameter {key} is {tuple(value.shape)}, and `{name}` is not"
                )
    return list(shapes)


def _refuse(source: Path, why: str) -> None:
    msg = (
        f"`{source}`: which of its optimizer's numbers stands for which parameter cannot be known: {why}. "
        "Give the model's configuration as `--config`, or convert `--to pretrained`, without the optimizer."
    )
    raise CheckpointError(msg)
