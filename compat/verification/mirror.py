"""A copy of the working folder, made of links, in which a run works: what it writes stays in the copy."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

COPIED: Final = 2**18
"""Bytes up to which files in the working folder are copied, so that a script may write them."""


class Mirror:
    """A tree of folders that are as they are on disk, but for those that a run writes to.

    The working folder and all folders above it are folders of their own, so that relative paths lead to the
    same files as before. Everything else in them is a link.

    Args:
        root: the folder of the tree; it stands for the root of the file system.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    def of(self, path: str) -> str:
        """Return the path in the tree that stands for an absolute path."""
        if self.has(path):
            return path
        return os.path.join(self.root, os.path.splitdrive(path)[1].lstrip(os.sep))

    def has(self, path: str) -> bool:
        """Whether an absolute path is in the tree."""
        return path == self.root or path.startswith(self.root + os.sep)

    def make(self, folder: str) -> str:
        """Build the tree around a folder.

        Args:
            folder: the working folder, an absolute path.

        Returns:
            The folder in the tree that takes its place.
        """
        inside = self.of(folder)
        os.makedirs(self.root)
        self._fill(self.root, os.path.abspath(os.sep))
        self.free(os.path.join(inside, "any"))
        copies = {}
        for entry in list(os.scandir(inside)):
            if entry.is_symlink() and entry.is_file() and entry.stat().st_size <= COPIED:
                self._copy(entry.path)
                copies[entry.path] = os.lstat(entry.path).st_mtime_ns
        with open(self._copies, "w", encoding="utf-8") as file:
            json.dump(copies, file)
        return inside

    def free(self, path: str) -> None:
        """Make a path in the tree one that a run may write: it is no link, and in no folder that is one.

        Args:
            path: of a file or folder; if it exists on disk, it is missing in the tree afterwards.
        """
        current = self.root
        *folders, last = os.path.relpath(path, self.root).split(os.sep)
        with self._lock():
            for name in folders:
                current = os.path.join(current, name)
                if os.path.islink(current):
                    original = os.path.realpath(current)
                    os.unlink(current)
                    os.mkdir(current)
                    self._fill(current, original)
            current = os.path.join(current, last)
            if os.path.islink(current):
                os.unlink(current)

    def is_new(self, path: str) -> bool:
        """Whether a file in the tree has been written by the run."""
        # Not by the original, which may change meanwhile.
        return not os.path.islink(path) and os.stat(path).st_mtime_ns != self._times.get(path)

    @property
    def _copies(self) -> str:
        """The file that tells all processes of a run when the copies were written last."""
        return f"{self.root}.json"

    @functools.cached_property
    def _times(self) -> dict[str, int]:
        with open(self._copies, encoding="utf-8") as file:
            times: dict[str, int] = json.load(file)
        return times

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep the other processes of a run from changing the tree."""
        lock = f"{self.root}.lock"
        while True:
            try:
                os.mkdir(lock)
                break
            except FileExistsError:
                time.sleep(0.01)
        try:
            yield
        finally:
            os.rmdir(lock)

    def _fill(self, folder: str, original: str) -> None:
        with contextlib.suppress(PermissionError):  # then nothing in it could be read either
            for entry in os.scandir(original):
                with contextlib.suppress(FileExistsError):
                    os.symlink(entry.path, os.path.join(folder, entry.name))

    def _copy(self, link: str) -> None:
        original = os.path.realpath(link)
        with contextlib.suppress(PermissionError):
            shutil.copy2(original, f"{link}.copy")
            os.replace(f"{link}.copy", link)
