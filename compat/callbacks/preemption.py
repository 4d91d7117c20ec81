"""A run that ends ahead of its time: told so by a signal, or because its time is up."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.upstream.stop_consensus import LocalStop

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""What announces the end of a process: every scheduler's way, SLURM's warning, and Ctrl-C."""

TIME = 0
"""The reason of a run whose time is up."""


class Ending:
    """Why and after which update step a run stops, for all of its processes alike.

    Args:
        consensus: of the processes.
        reason: tells what this process has heard: a signal's number, `TIME`, or None.

    Attributes:
        cause: what has ended the run: a signal's number, `TIME`, or None for its own end.
        is_agreed: whether all processes have stopped for it after the same update step.
        is_early: whether the run would have gone on.
        is_requeued: whether its job has been given back to the queue.
        saved: the update step of the last checkpoint.
        checkpoint: the last checkpoint.
    """

    def __init__(self, consensus: LocalStop, reason: Callable[[], int | None]) -> None:
        self._consensus = consensus
        self._reason = reason
        self.cause: int | None = None
        self.is_agreed = self.is_early = self.is_requeued = False
        self.saved: int | None = None
        self.checkpoint: str | None = None

    @property
    def ahead(self) -> int:
        """Update steps that are made after a process has found a reason to stop."""
        return self._consensus.ahead

    def is_due(self, step: int, *, is_last: bool = False) -> bool:
        """Whether the run stops now; asked by all processes at the end of each update step.

        Args:
            step: the update steps made.
            is_last: whether it stops now in any case.
        """
        reason = self._reason()
        if reason is not None:
            self._consensus.propose(step + self.ahead, reason, is_last=is_last)
        stop = self._consensus.look(is_last=is_last)
        if stop is None or step < stop.step:
            return False
        self.cause, self.is_agreed = stop.reason, True
        return True

    def conclude(self) -> None:
        """At the run's end: a signal that came too late to stop training has told the process to end, too."""
        if self.cause is None:
            stop = self._consensus.look(is_last=True)
            self.cause = self._reason() or (stop.reason if stop is not None else None) or None


def leave(number: int) -> NoReturn:
    """End the process as a scheduler expects it of one that was told to.

    Args:
        number: the signal's.

    Raises:
        KeyboardInterrupt: Ctrl-C, so that a script can say what follows.
        SystemExit: another signal, with the status by which shells and schedulers know it.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
