"""Numbers of any library, as the JSON files of a run hold them."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainerState


def as_json(value: object, name: str) -> Any:
    """What stands for a value in JSON: a number or a (nested) list for NumPy's and torch's numbers.

    Args:
        value: a metric, or whatever holds metrics.
        name: what it is, for the error.

    Raises:
        ArgumentError: JSON has nothing for it, or for what stands in it.
    """
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: as_json(entry, f"{name}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        msg = (
            f"{name} is {type(value).__name__} ({value!r:.80}), which a JSON file cannot hold. Have "
            "`compute_metrics`, or what calls `log`, return numbers, strings, arrays or lists."
        )
        raise ArgumentError(msg) from None
    return value


def metrics_as_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a pass, as `as_json` has each."""
    return {name: as_json(value, f"The metric {name!r}") for name, value in metrics.items()}


def state_as_json(state: TrainerState) -> TrainerState:
    """A copy of a `TrainerState` that `save_to_json` can write.

    Raises:
        ArgumentError: something in it cannot be written; it is named, with its step.
    """
    plain = copy.copy(state)
    plain.log_history = [
        {
            name: as_json(value, f"{name!r}, logged at step {entry.get('step')},")
            for name, value in entry.items()
        }
        for entry in state.log_history
    ]
    for name, value in vars(state).items():
        if name != "log_history":
            setattr(plain, name, as_json(value, f"`state.{name}`"))
    return plain


def save_state(state: TrainerState, file: str) -> None:
    """Write a `TrainerState`, whatever numbers its log holds.

    Args:
        state: what is written.
        file: where.

    Raises:
        ArgumentError: as for `state_as_json`.
    """
    try:
        state.save_to_json(file)
    except TypeError:
        # A look at each entry of a long log takes its time.
        state_as_json(state).save_to_json(file)
