"""Writing while training goes on."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class _Writing(threading.Thread):
    """A piece of work in a folder. Not a daemon: a process that ends waits for what it is writing.

    Attributes:
        folder: where it writes.
        done: set at its end. Before Python 3.13, a `join` that Ctrl-C interrupts takes the thread for ended.
    """

    def __init__(self, folder: Path, target: Callable[[], None]) -> None:
        super().__init__(target=target, name="compat-writer", daemon=False)
        self.folder = folder
        self.done = threading.Event()

    @override
    def run(self) -> None:
        try:
            super().run()
        finally:
            self.done.set()


def wait_for_writers(folder: str | Path) -> None:
    """Wait until no writer of this process is at work in a folder, whosever it is.

    A run that was interrupted leaves its writer behind, which what comes next must not get in the way of.
    """
    place = Path(folder).resolve()
    for thread in threading.enumerate():
        if isinstance(thread, _Writing) and thread.folder == place:
            thread.done.wait()


class Writer:
    """Does one piece of work after another, each in a thread of its own; no two at once."""

    def __init__(self) -> None:
        self._thread: _Writing | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a piece of work is under way."""
        return self._thread is not None and not self._thread.done.is_set()

    def start(self, folder: str | Path, work: Iterable[Callable[[], object]]) -> None:
        """Begin the next piece of work, after the end of the one before.

        Args:
            folder: where it writes.
            work: what is done, in order.

        Raises:
            BaseException: the piece before has failed.
        """
        self.finish()
        self._thread = _Writing(Path(folder).resolve(), partial(self._run, list(work)))
        self._thread.start()

    def check(self) -> None:
        """Raise what the last piece of work has failed with, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait for the end of the work under way, and raise what it has failed with."""
        if self._thread is not None:
            self._thread.done.wait()
            self._thread = None
        self.check()

    def _run(self, work: list[Callable[[], object]]) -> None:
        try:
            for step in work:
                step()
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that trains)
            self._error = error
