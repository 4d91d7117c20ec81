"""Flushes large files to the disk, and takes their digests, while other files of a checkpoint are written."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compat.checkpoint.digests import CURRENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

Traits = tuple[int, int, int]
"""A file's inode number, its size and the time of its last change."""

LARGE = 1 << 22
"""Bytes. Smaller complete files are left to the sealing of the checkpoint."""

_CHUNK = 1 << 20
_WRITTEN_BACK_EVERY = 8 * _CHUNK
_POLL = 0.002
_THREADS = 4


def traits(file: str | Path | int) -> Traits:
    """Return the traits that identify an unchanged file."""
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns


def flush(path: str | Path) -> None:
    """Flush a file or folder to its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_and_digest(file: Path, complete: threading.Event | None = None) -> str:
    """Flush a file to its disk, and return its digest.

    The file is dropped from the page cache: it is next read when a run resumes, and pages that are reused
    cost less than new ones.

    Args:
        file: a complete file, or one to which another thread appends.
        complete: set when the other thread has finished.
    """
    digest = CURRENT.new()
    with open(file, "rb", buffering=0) as stream:
        for chunk in _chunks(stream, complete):
            digest.update(chunk)
        os.fsync(stream.fileno())
        _write_back(stream.fileno())
    return str(digest.hexdigest())


def _chunks(stream: FileIO, complete: threading.Event | None) -> Iterator[memoryview]:
    """Yield the bytes of a file, as they appear, and have them written back."""
    length = _CHUNK if complete is not None else min(_CHUNK, os.fstat(stream.fileno()).st_size + 1)
    buffer, position = memoryview(bytearray(length)), 0
    while True:
        # In this order: what was written before the end was announced is in the size.
        is_complete = complete is None or complete.is_set()
        rest = os.fstat(stream.fileno()).st_size - position
        if complete is not None and not is_complete and rest < _CHUNK:
            complete.wait(_POLL)
        elif count := stream.readinto(buffer):
            yield buffer[:count]
            position += count
            if position % _WRITTEN_BACK_EVERY == 0:
                _write_back(stream.fileno())
        else:
            return


def _write_back(descriptor: int) -> None:
    """Drop pages that are on the disk, and begin to write the others, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class _Early:
    """A file whose digest was taken before the checkpoint was complete.

    Attributes:
        digest: by the current algorithm.
        traits: the file's traits when it was complete; None before.
    """

    digest: Future[str]
    traits: Traits | None = None


class Flusher:
    """Flushes the files of a folder in threads.

    Args:
        folder: files elsewhere are ignored.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).absolute()
        self._pool = ThreadPoolExecutor(_THREADS, "compat-flusher")
        self._early: dict[Path, _Early] = {}

    def flush_written(self) -> None:
        """Begin to flush the large files that the folder has; they are expected to be complete."""
        for parent, _, names in os.walk(self._folder):
            for file in (Path(parent, name) for name in names):
                if file not in self._early and file.stat().st_size >= LARGE:
                    complete = _mark(file)
                    self._early[file] = _Early(self._pool.submit(flush_and_digest, file), complete)

    @contextlib.contextmanager
    def following(self, file: Path) -> Iterator[None]:
        """Flush a file while it is written within this context, from its begin to its end."""
        file = file.absolute()
        if not file.is_relative_to(self._folder):
            yield
            return
        file.write_bytes(b"")
        complete = threading.Event()
        early = _Early(self._pool.submit(flush_and_digest, file, complete))
        try:
            yield
            early.traits = _mark(file)
            self._early[file] = early
        finally:
            complete.set()

    def digest_of(self, file: Path) -> str | None:
        """Return the digest of a file that is flushed and has not changed since; None if it must be read."""
        early = self._early.get(file.absolute())
        return early.digest.result() if early is not None and early.traits == traits(file) else None

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown(cancel_futures=True)


_CURRENT: ContextVar[Flusher | None] = ContextVar("flusher", default=None)


@contextlib.contextmanager
def flushing(folder: str | Path) -> Iterator[None]:
    """Flush the files that this thread writes to a folder early, until it is sealed in this context."""
    flusher = Flusher(folder)
    token = _CURRENT.set(flusher)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        flusher.close()


def current_flusher() -> Flusher | None:
    """Return this thread's flusher."""
    return _CURRENT.get()


def flush_written() -> None:
    """Have this thread's flusher, if any, flush the large files that are complete."""
    if (flusher := current_flusher()) is not None:
        flusher.flush_written()


def following(file: str | Path) -> contextlib.AbstractContextManager[None]:
    """Have this thread's flusher, if any, flush a file while `torch.save` writes it.

    Torch only appends to an archive, and checks that it does; nothing is known of a function in its place.
    """
    flusher = current_flusher()
    if flusher is None or torch.save is not torch.serialization.save:
        return contextlib.nullcontext()
    return flusher.following(Path(file))


def _mark(file: Path) -> Traits:
    """Give a file a time that no later write gives it, and return its traits.

    Times of changes are counted in steps of some milliseconds, so that a write may leave the time as it was.
    """
    found = file.stat()
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 1000))
    return traits(file)
