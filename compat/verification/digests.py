"""Turns tensors, files and random states into small plain values that can be compared to the bit.

A tensor becomes a hash of its bytes, and a sample of its values to measure a difference by: models of any
size are compared without a second copy on disk.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from compat.upstream.devices import random_states

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compat.verification.mirror import Mirror

SAMPLE: Final = 256
"""Values of a tensor that are kept, evenly spaced; all of a smaller tensor."""

LONG: Final = 32
"""Length from which a list of numbers is treated as an array: Python's random state has 625."""

WITH_FLOAT64: Final = ("cpu", "cuda", "xla")
"""Device types that certainly add in float64."""

OUT: Final = "<output>"
"""What takes the place of a run's own folder in texts."""

Leaves = dict[str, Any]


def leaves(value: object, home: str = "", path: str = "") -> Leaves:
    """Flatten nested containers.

    Args:
        value: containers of tensors, arrays and plain values.
        home: a folder whose path is replaced, so that two runs in two folders are equal.
        path: of `value` itself.

    Returns:
        Path → a number, a text, None, or the digest of an array. An object of another kind is represented by
        its class.
    """
    return dict(_walk(value, home, path))


def _walk(value: Any, home: str, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind != "O"):
        yield path, digest(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            dot = "." if path and not path.endswith(" ") else ""
            yield from _walk(item, home, f"{path}{dot}{key}")
    elif isinstance(value, (list, tuple)) and len(value) >= LONG and _has_numbers_only(value):
        yield path, digest(np.asarray(value))
    elif isinstance(value, (list, tuple, np.ndarray)):
        for place, item in enumerate(value):
            yield from _walk(item, home, f"{path}[{place}]")
    else:
        yield path, _plain(value, home)


def _has_numbers_only(values: list[object] | tuple[object, ...]) -> bool:
    return all(type(value) in {int, float} for value in values)


def _plain(value: object, home: str) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, os.PathLike)):
        return str(value).replace(home, OUT) if home else str(value)
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def digest(array: torch.Tensor | np.ndarray[Any, Any]) -> dict[str, Any]:
    """Summarize an array; of a sharded tensor, the shard of this process.

    Returns:
        `sha256` of its bytes, `dtype`, `shape`, and `sample`: at most `SAMPLE` values.
    """
    tensor = torch.as_tensor(array) if not isinstance(array, np.ndarray) else _of_numpy(array)
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    tensor = tensor.detach().cpu()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.contiguous().reshape(-1)
    sample = flat[:: max(1, -(-flat.numel() // SAMPLE))]
    kind = torch.float64 if tensor.is_floating_point() else None
    return {
        "sha256": hashlib.sha256(_bytes(flat)).hexdigest(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sample": torch.view_as_real(sample).tolist() if tensor.is_complex() else sample.to(kind).tolist(),
    }


def _bytes(flat: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor without a copy."""
    # An empty one may have strides that no view takes.
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _of_numpy(array: np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        return torch.as_tensor(np.ascontiguousarray(array))
    except TypeError:  # of texts, of numbers that torch does not have
        return torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8)


def weight_sum(model: torch.nn.Module) -> float:
    """Return the sum of all weights that are trained, in float64: a change of any one shows in it."""
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            local = parameter.detach()
            local = local.to_local() if hasattr(local, "to_local") else local
            # Others, for example MPS, have no float64.
            local = local if local.device.type in WITH_FLOAT64 else local.cpu()
            sums.setdefault(local.device, []).append(local.sum(dtype=torch.float64))
    # One look at each device: on XLA each is a program to compile.
    return sum(float(torch.stack(each).sum()) for each in sums.values())


def generators() -> Leaves:
    """Return the states of the generators of Python, NumPy, torch, and torch on each device."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the generator that transformers seeds and draws from)
        "torch": torch.get_rng_state(),
    }
    return leaves({**states, **random_states()})


def _read_safetensors(path: str) -> object:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: str) -> object:
    # The run has just written it: nothing that anybody else could have put there is executed.
    return torch.load(path, map_location="cpu", weights_only=False)


def _read_json(path: str) -> object:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _read_bytes(path: str) -> object:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if _HAS_FILE_DIGEST else _hash(file.read())


_HAS_FILE_DIGEST = hasattr(hashlib, "file_digest")  # from Python 3.11 on


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _present(path: str) -> object:
    return "present"


READERS: tuple[tuple[str, Callable[[str], object]], ...] = (
    ("training_args.bin", _present),  # a pickle of the engine's own class
    ("*.md", _present),  # names releases and times
    ("*.distcp", _present),
    (".metadata", _present),
    ("tokenizer.json", _read_bytes),
    ("vocab*.json", _read_bytes),
    ("*.safetensors", _read_safetensors),
    ("*.bin", _read_torch),
    ("*.pt", _read_torch),
    ("*.pth", _read_torch),
    ("*.json", _read_json),
    ("*", _read_bytes),
)
"""Pattern of a file's name → what of it is compared; the first one that matches."""

SKIPPED = ("events.out.tfevents*", "*.lock", "*.pyc")
"""Files that are not compared, nor is their presence."""


def files(mirror: Mirror, home: str, skipped: Sequence[str] = ()) -> Leaves:
    """Return all files that a run has written, flattened as `leaves` does.

    Args:
        mirror: the tree of the run.
        home: the working folder in it; paths are relative to that.
        skipped: patterns of names to leave out, besides `SKIPPED`.
    """
    found: Leaves = {}
    for folder, _, names in sorted(os.walk(mirror.root)):
        for name in sorted(names):
            path = os.path.join(folder, name)
            is_skipped = any(fnmatch.fnmatch(name, pattern) for pattern in (*SKIPPED, *skipped))
            if is_skipped or not mirror.is_new(path):
                continue
            found.update(_read(path, os.path.relpath(path, home).replace(os.sep, "/"), mirror.root))
    return found


def _read(path: str, shown: str, home: str) -> Leaves:
    reader = next(read for pattern, read in READERS if fnmatch.fnmatch(os.path.basename(path), pattern))
    try:
        content = reader(path)
    except Exception as error:  # noqa: BLE001 (of a format of a library's own: then its presence is compared)
        content = f"present, not readable ({type(error).__name__})"
    return {shown: "file", **leaves(content, home, f"{shown}: ")}
