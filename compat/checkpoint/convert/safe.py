"""Safetensors files, read and written one tensor at a time."""

from __future__ import annotations

import json
import math
import os
import struct
from typing import TYPE_CHECKING, Any

import torch

from compat.checkpoint.convert import lazy
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LATER = {
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
"""Types that some releases of torch lack."""

DTYPES: dict[str, torch.dtype] = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    **{name: getattr(torch, kind) for name, kind in _LATER.items() if hasattr(torch, kind)},
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's name of a type → torch's, in the order in which a file has them."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = list(_NAMES)
_LARGEST_HEADER = 100_000_000
"""The format's limit for the header, in bytes."""


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file as name → lazy tensor.

    Raises:
        CheckpointError: the file is damaged.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LARGEST_HEADER):
                msg = f"a header of {length} bytes in a file of {size}"
                raise ValueError(msg)  # noqa: TRY301
            header = json.loads(file.read(length))
            if unknown := [name for name, entry in header.items() if _is_unknown(name, entry)]:
                kind = header[unknown[0]]["dtype"]
                msg = f"`{path}`: `{unknown[0]}` is of the type {kind}, which this torch lacks. Update it."
                raise CheckpointError(msg)
            header.pop("__metadata__", None)
            return {name: _declared(str(path), 8 + length, size, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
            msg = f"`{path}`: not a whole file of safetensors ({error!r}). Copy it again, whole."
            raise CheckpointError(msg) from error


def _is_unknown(name: str, entry: Mapping[str, Any]) -> bool:
    return name != "__metadata__" and isinstance(entry["dtype"], str) and entry["dtype"] not in DTYPES


def _declared(path: str, start: int, size: int, entry: Mapping[str, Any]) -> torch.Tensor:
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= size - start or last - first != math.prod(shape) * dtype.itemsize:
        msg = f"bytes {first} to {last} for {entry['dtype']} {shape}, in a file of {size}"
        raise ValueError(msg)
    return lazy.declared(shape, dtype, lazy.FileRange(path, start + first))


def write(tensors: Mapping[str, torch.Tensor], path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file with the layout of `safetensors.torch.save_file`.

    Args:
        tensors: name → tensor, lazy or not; shared memory is written once for each name.
        path: the file.
        dtype: the type of floating-point tensors; unchanged if None.

    Raises:
        CheckpointError: the format does not support the type of a tensor.
    """
    types = {name: _type(name, tensor, dtype, path) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (_ORDER.index(types[name]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * types[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[types[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            data = lazy.real(tensors[name]).to(types[name]).contiguous()
            file.write(lazy.buffer(data))
            del data


def _type(name: str, tensor: torch.Tensor, asked: torch.dtype | None, path: str | Path) -> torch.dtype:
    dtype = asked if asked is not None and tensor.is_floating_point() else tensor.dtype
    if dtype not in _NAMES:
        msg = f"`{path}`: safetensors has no type for `{name}` ({dtype}). Leave that tensor out of the model."
        raise CheckpointError(msg)
    return dtype
