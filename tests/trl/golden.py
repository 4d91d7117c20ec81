"""Golden files: what the set-ups of an area gave under TRL 0.7.11, written once and read by the tests."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

FOLDER = Path(__file__).with_name("golden")
SETUPS = Path(__file__).with_name("setups")


OF_SEVERAL_PROCESSES = "two_processes"
"""The area whose set-ups run under torchrun; each process has golden files of its own."""


def areas() -> list[str]:
    """The areas that have set-ups of one process."""
    return sorted({file.stem for file in SETUPS.glob("*.py")} - {"__init__", "parts", OF_SEVERAL_PROCESSES})


def setups(area: str) -> dict[str, Callable[[Any], dict[str, Any]]]:
    """Name → set-up of one area."""
    module = importlib.import_module(f"tests.trl.setups.{area}")
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def library(root: str) -> Callable[[str], ModuleType]:
    """What a set-up takes: gives the modules of `root`, "trl" or "compat.trl", by their names there."""
    return lambda name: importlib.import_module(f"{root}.{name}" if name else root)


def write(area: str, results: dict[str, dict[str, Any]], folder: Path = FOLDER) -> None:
    """Write what each set-up of an area gave: tensors to one file, the rest to another."""
    flat = {f"{setup}.{name}": value for setup, found in results.items() for name, value in found.items()}
    tensors = {name: _tensor(value) for name, value in flat.items() if _is_array(value)}
    rest = {name: value for name, value in flat.items() if name not in tensors}
    folder.mkdir(exist_ok=True)
    if tensors:
        save_file(tensors, folder / f"{area}.safetensors")
    (folder / f"{area}.json").write_text(json.dumps(rest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read(area: str, folder: Path = FOLDER) -> dict[str, Any]:
    """`setup.name` → what was recorded."""
    tensors = folder / f"{area}.safetensors"
    found: dict[str, Any] = json.loads((folder / f"{area}.json").read_text(encoding="utf-8"))
    return found | (load_file(tensors) if tensors.exists() else {})


def as_recorded(value: Any) -> Any:
    """A value in the form that `read` gives it back."""
    return _tensor(value) if _is_array(value) else json.loads(json.dumps(value))


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _tensor(value: Any) -> torch.Tensor:
    # A copy: tensors that share memory cannot be saved.
    return torch.as_tensor(value).detach().clone().contiguous()


RELATIVE, ABSOLUTE = 1e-5, 1e-5
"""transformers computes attention otherwise than it did then: floats agree to rounding."""


def check(key: str, found: Any, recorded: Any) -> None:
    """Assert that a value is the recorded one: floats to rounding, all else exactly."""
    if isinstance(recorded, torch.Tensor):
        torch.testing.assert_close(
            found, recorded, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True, msg=lambda text: f"{key}: {text}"
        )
    elif isinstance(recorded, list):
        assert isinstance(found, list), key
        assert len(found) == len(recorded), key
        for place, (one, other) in enumerate(zip(found, recorded, strict=True)):
            check(f"{key}[{place}]", one, other)
    elif isinstance(recorded, dict):
        assert found.keys() == recorded.keys(), key
        for name, value in recorded.items():
            check(f"{key}.{name}", found[name], value)
    elif isinstance(recorded, float) and not math.isnan(recorded):
        assert found == pytest.approx(recorded, rel=RELATIVE, abs=ABSOLUTE), key
    else:
        assert found == recorded or (found != found and recorded != recorded), key  # noqa: PLR0124 (NaN)
