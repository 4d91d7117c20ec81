"""Converts numbers of any library for the JSON files of a run."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compat.errors import ArgumentError
from compat.upstream.patched import is_upstream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainerState

FORMAT: Any = {"indent": 2, "sort_keys": True}
"""How HF writes `trainer_state.json`."""
NESTED = (dict, list, tuple)
_FLAT = json.JSONEncoder(sort_keys=True, separators=(",\n      ", ": "))


def as_json(value: object, name: str) -> Any:
    """Convert a value for JSON: NumPy and torch numbers become a number or a (nested) list.

    Args:
        value: a metric, or a container of metrics.
        name: its name, for the error.

    Raises:
        ArgumentError: JSON cannot represent the value, or a value inside it.
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
    """Convert the metrics of a pass with `as_json`."""
    return {name: as_json(value, f"The metric {name!r}") for name, value in metrics.items()}


def state_as_json(state: TrainerState) -> TrainerState:
    """Copy a `TrainerState`, so that `save_to_json` can write it.

    Raises:
        ArgumentError: an entry cannot be written; the error names it, with its step.
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
    """Write a `TrainerState`, with numbers of any library in its log.

    Args:
        state: the state.
        file: the file.

    Raises:
        ArgumentError: as for `state_as_json`.
    """
    own = type(state).save_to_json
    write = _write_state if is_upstream(own, "transformers") else own
    try:
        write(state, file)
    except TypeError:
        # Checking each entry of a long log is slow.
        write(state_as_json(state), file)


def _write_state(state: TrainerState, file: str) -> None:
    """Write what `TrainerState.save_to_json` writes, without copying the log or encoding it in Python.

    Both would take a second of each save for 50,000 entries.
    """
    rest = copy.copy(state)
    rest.log_history = []
    before, empty, behind = json.dumps(asdict(rest), **FORMAT).partition('\n  "log_history": []')
    entries = ",\n    ".join(map(_indented, state.log_history))
    log = f"{empty[:-1]}\n    {entries}\n  ]" if entries else empty
    with open(file, "w", encoding="utf-8") as opened:
        opened.write(f"{before}{log}{behind}\n")


def _indented(entry: dict[str, Any]) -> str:
    """Encode an entry of a log as it stands within the file."""
    if not entry or any(isinstance(value, NESTED) for value in entry.values()):
        return json.dumps(entry, **FORMAT).replace("\n", "\n    ")
    # The encoder in C takes no indent, but any separator.
    return f"{{\n      {_FLAT.encode(entry)[1:-1]}\n    }}"
