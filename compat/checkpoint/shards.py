"""Folders of `torch.distributed.checkpoint`: the files that they name, and the location of each entry."""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING, Any, cast

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from typing_extensions import override

from compat.checkpoint.layout import Lacks, leaves_folder
from compat.checkpoint.pickles import refuse_code
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch.distributed.checkpoint.metadata import Metadata
    from typing_extensions import Buffer

METADATA = ".metadata"
"""The file that lists the saved entries with their types and locations; a pickle."""


class Slice(io.RawIOBase):
    """A part of a file, as a file object.

    Args:
        path: the file.
        offset: where the part begins, in bytes.
        length: its size in bytes.
    """

    def __init__(self, path: str | Path, offset: int, length: int) -> None:
        self._file, self._offset, self._length = open(path, "rb", buffering=0), offset, length  # noqa: SIM115
        self.seek(0)

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._length}[whence]
        return self._file.seek(self._offset + base + offset) - self._offset

    @override
    def tell(self) -> int:
        return self._file.tell() - self._offset

    @override
    def readinto(self, buffer: Buffer) -> int:
        left = max(0, self._length - self.tell())
        return self._file.readinto(memoryview(buffer)[:left]) or 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def close(self) -> None:
        self._file.close()
        super().close()


def read_metadata(folder: Path) -> Metadata:
    """Read the metadata of a folder.

    Raises:
        CheckpointError: its pickle would run code, or torch cannot read it.
    """
    refuse_code(folder / METADATA)
    try:
        return FileSystemReader(folder).read_metadata()
    except Exception as error:
        msg = f"`{folder / METADATA}`: torch cannot read it ({type(error).__name__}: {error}). Copy it again."
        raise CheckpointError(msg) from error


def wrong_in_shards(folder: Path) -> str | Lacks:
    """Find out what prevents loading a folder, without loading any of its entries.

    torch unpickles an entry of bytes (a number, a text) directly, and loads tensors weights-only.

    Args:
        folder: a folder with a `.metadata`.

    Returns:
        A phrase for the first problem, or the missing files; empty if there is no problem.

    Raises:
        CheckpointError: as for `read_metadata`.
    """
    missing = []
    metadata = read_metadata(folder)
    entries: dict[str, Any] = metadata.state_dict_metadata
    for index, place in (metadata.storage_data or {}).items():
        name = place.relative_path
        if leaves_folder(name):
            return f"it names {name!r}, which is outside of the checkpoint"
        file = folder / name
        if not file.is_file():
            missing.append(name)
            continue
        if min(place.offset, place.length) < 0 or place.offset + place.length > os.path.getsize(file):
            return f"it names more of {name!r} than there is: the file is cut short"
        if not isinstance(entries.get(index.fqn), BytesStorageMetadata):
            continue
        if getattr(place, "transform_descriptors", None):
            return f"its entry {index.fqn!r} is packed, and cannot be checked"
        with Slice(file, place.offset, place.length) as part:
            try:
                refuse_code(file, cast("IO[bytes]", part))
            except CheckpointError as error:
                return f"its entry {index.fqn!r} in {name!r} is {str(error).partition(': ')[2]}"
    return Lacks(tuple(dict.fromkeys(missing))) if missing else ""
