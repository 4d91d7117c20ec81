"""Writing in a thread while training continues."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class _Writing(threading.Thread):
    """A task that writes to a folder. Not a daemon thread: a process that exits waits for it.

    Attributes:
        folder: the folder that it writes to.
        done: set at its end. Before Python 3.13, a `join` interrupted by Ctrl-C marks the thread as ended.
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
    """Wait until no writer of this process is writing to a folder.

    An interrupted run leaves its writer running; later code must not interfere with it.
    """
    place = Path(folder).resolve()
    for thread in threading.enumerate():
        if isinstance(thread, _Writing) and thread.folder == place:
            thread.done.wait()


class Writer:
    """Runs tasks one after another, each in its own thread."""

    def __init__(self) -> None:
        self._thread: _Writing | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a task is running."""
        return self._thread is not None and not self._thread.done.is_set()

    def start(self, folder: str | Path, work: Iterable[Callable[[], object]]) -> None:
        """Start the next task, after the end of the previous one.

        Args:
            folder: the folder that it writes to.
            work: the functions to call, in order.

        Raises:
            BaseException: the previous task failed.
        """
        self.finish()
        self._thread = _Writing(Path(folder).resolve(), partial(self._run, list(work)))
        self._thread.start()

    def check(self) -> None:
        """Raise the error of the last task, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait for the running task, and raise its error."""
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
