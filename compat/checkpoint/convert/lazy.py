"""Lazy tensors: only shape and type are known, and the data is read from the file when needed."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from compat.checkpoint.counting import tell
from compat.errors import CheckpointError

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Sequence

_MODE = FakeTensorMode()


class Source(Protocol):
    """The source of the bytes of one storage."""

    def read(self, start: int, count: int) -> torch.Tensor:
        """Read `count` bytes from byte `start` on, as uint8 in newly allocated memory."""


@dataclass(frozen=True)
class FileRange:
    """A source that reads bytes of a file.

    Attributes:
        path: the file.
        offset: their offset in the file, in bytes.
    """

    path: str
    offset: int

    def read(self, start: int, count: int) -> torch.Tensor:
        """See `Source`."""
        data = memory(count)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset + start)
            view = buffer(data)
            while view:
                if not (got := file.readinto(view)):
                    msg = f"`{self.path}`: it ends in the middle of a tensor. Copy it again, whole."
                    raise CheckpointError(msg)
                view = view[got:]
        return data


@dataclass(frozen=True)
class Assembled:
    """A source that assembles a tensor from parts.

    Attributes:
        make: returns the full tensor, contiguous.
    """

    make: Callable[[], torch.Tensor]

    def read(self, start: int, count: int) -> torch.Tensor:
        """See `Source`."""
        return self.make().reshape(-1).view(torch.uint8)[start : start + count]


def memory(count: int) -> torch.Tensor:
    """Allocate `count` bytes that return to the system at once when freed, without an allocator."""
    return (
        torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8)
        if count
        else torch.empty(0, dtype=torch.uint8)
    )


def storage(nbytes: int, source: Source) -> Any:
    """Create a storage without memory.

    Args:
        nbytes: its size in bytes.
        source: the source that `real` reads.
    """
    with _MODE:
        made: Any = torch.empty(nbytes, dtype=torch.uint8).untyped_storage()
    made.source = source
    return made


def view(
    of: Any, dtype: torch.dtype, offset: int, shape: Sequence[int], stride: Sequence[int]
) -> torch.Tensor:
    """Create a tensor in a storage that `storage` created.

    Args:
        of: the storage.
        dtype: of the tensor.
        offset: its offset, in elements.
        shape: its sizes.
        stride: its strides, in elements.
    """
    with _MODE:
        return torch.empty(0, dtype=dtype).set_(of, offset, tuple(shape), tuple(stride))


def declared(shape: Sequence[int], dtype: torch.dtype, source: Source) -> torch.Tensor:
    """Create a contiguous lazy tensor that `real` reads from `source`."""
    strides: list[int] = []
    count = 1
    for size in reversed(shape):
        strides.insert(0, count)
        count *= max(size, 1)
    numel = count if all(shape) else 0
    return view(storage(numel * dtype.itemsize, source), dtype, 0, shape, strides)


def is_lazy(value: object) -> bool:
    """Whether a value is a tensor without memory."""
    return isinstance(value, FakeTensor)


def real(tensor: torch.Tensor) -> torch.Tensor:
    """Read the data of a lazy tensor from its file; return any other tensor unchanged."""
    data = filled(tensor)
    tell(nbytes(data))
    return data


def filled(tensor: torch.Tensor) -> torch.Tensor:
    """Do the same as `real`, without calling a listener."""
    if not is_lazy(tensor):
        return tensor
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    first, item = int(tensor.storage_offset()), tensor.dtype.itemsize
    source: Source = tensor.untyped_storage().source  # type: ignore[attr-defined]
    read = source.read(first * item, (last + 1) * item)
    return read.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


def read_storage(of: Any) -> torch.Tensor:
    """Read a full storage as uint8, and call the listener."""
    count = of.nbytes()
    data: torch.Tensor = of.source.read(0, count)
    tell(count)
    return data


def buffer(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    data: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def nbytes(tensor: torch.Tensor) -> int:
    """Return the size of a tensor's elements, in bytes."""
    return tensor.numel() * tensor.dtype.itemsize


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for two names of the same tensor."""
    place = tensor.untyped_storage()._cdata
    return place, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def loading() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which `torch.load` reads no data."""
    return _MODE
