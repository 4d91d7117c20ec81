"""Writing while training goes on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Writer:
    """Does one piece of work after another, each in a thread of its own; no two at once."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a piece of work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Iterable[Callable[[], object]]) -> None:
        """Begin the next piece of work, after the end of the one before.

        Args:
            work: what is done, in order.

        Raises:
            BaseException: the piece before has failed.
        """
        self.finish()
        # Not a daemon: a process that ends waits for what it is writing.
        self._thread = threading.Thread(target=self._run, args=(list(work),), name="compat-writer")
        self._thread.start()

    def check(self) -> None:
        """Raise what the last piece of work has failed with, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait for the end of the work under way, and raise what it has failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _run(self, work: list[Callable[[], object]]) -> None:
        try:
            for step in work:
                step()
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that trains)
            self._error = error
