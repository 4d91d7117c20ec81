"""Turns results into plain values that can be compared exactly and read in a diff."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

MEASURED = re.compile(r"(_runtime|_per_second|_time|_mem_\w+|\(s/it\)|\(GiB\))$")
"""Keys whose values are clock or memory readings: only their presence is compared."""


def digest(array: torch.Tensor | np.ndarray | None) -> str | None:
    """Describe an array to the bit: dtype, shape, a few raw values, hash of all bytes."""
    if array is None:
        return None
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().contiguous()
        raw = array.reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = str(array.dtype).removeprefix("torch.")
        head = array.reshape(-1)[:3].tolist()
    else:
        raw, kind, head = array.tobytes(), str(array.dtype), array.reshape(-1)[:3].tolist()
    shape = tuple(array.shape)
    return f"{type(array).__name__} {kind}{shape} {head} #{hashlib.sha256(raw).hexdigest()[:12]}"


def plain(value: Any, home: Path | None = None) -> Any:
    """Reduce a value to dictionaries, lists, numbers, strings and None.

    Args:
        value: what a script returned, a trainer keeps or a file holds.
        home: folder whose path is replaced, so that two runs in two folders can be equal.

    Raises:
        TypeError: the value has no exact plain form.
    """
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {
            str(key): "<measured>" if MEASURED.search(str(key)) else plain(item, home)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, home) for item in value]
    return _leaf(value, home)


def _leaf(value: Any, home: Path | None) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return digest(value)
    if isinstance(value, np.generic):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, (str, Path)):
        return str(value).replace(str(home), "<out>") if home else str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    msg = f"{type(value).__name__} has no plain form: {value!r}"
    raise TypeError(msg)


def plain_generators() -> Any:
    """Say where the generators of python, numpy and torch stand."""
    generators = [
        np.array(random.getstate()[1]),
        np.random.get_state(),  # noqa: NPY002 (the generator that transformers seeds and draws from)
        torch.get_rng_state(),
    ]
    return plain(generators)


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Walk two plain values and yield each path at which they differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            here = f"{path}.{key}" if path else key
            if key not in ours or key not in theirs:
                where = "theirs" if key in theirs else "ours"
                yield f"{here}: only in {where}: {theirs.get(key, ours.get(key))!r}"
            else:
                yield from differences(ours[key], theirs[key], here)
    elif isinstance(ours, list) and isinstance(theirs, list):
        for i, (left, right) in enumerate(zip(ours, theirs, strict=False)):
            yield from differences(left, right, f"{path}[{i}]")
        if len(ours) != len(theirs):
            yield f"{path}: {len(ours)} entries in ours, {len(theirs)} in theirs"
    elif not _same(ours, theirs):
        yield f"{path}:\n    ours   {ours!r}\n    theirs {theirs!r}"


def _same(left: Any, right: Any) -> bool:
    # Equal texts are equal bits: NaN equals NaN, and minus zero differs from zero.
    return type(left) is type(right) and repr(left) == repr(right)
