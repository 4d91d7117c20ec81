"""Early end of a run: on a signal, or at its time limit."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.upstream.stop_consensus import LocalStop

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""Signals that announce the end of a process: from schedulers, SLURM's warning, and Ctrl-C."""

TIME = 0
"""The reason of a run that has reached its time limit."""


class Ending:
    """Why and after which update step a run stops, the same for all of its processes.

    Args:
        consensus: the consensus of the processes.
        reason: returns this process's reason: a signal's number, `TIME`, or None.

    Attributes:
        cause: the reason for the end: a signal's number, `TIME`, or None for a normal end.
        is_agreed: whether all processes have stopped for it after the same update step.
        is_early: whether the run would have continued.
        is_requeued: whether its job has been requeued.
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
        """Update steps that follow after a process has found a reason to stop."""
        return self._consensus.ahead

    def is_due(self, step: int, *, is_last: bool = False) -> bool:
        """Whether the run stops now; all processes call this at the end of each update step.

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
        """End the run: a signal that came too late to stop training still ends the process."""
        if self.cause is None:
            stop = self._consensus.look(is_last=True)
            self.cause = self._reason() or (stop.reason if stop is not None else None) or None


def leave(number: int) -> NoReturn:
    """End the process with the status that a scheduler expects after a signal.

    Args:
        number: the number of the signal.

    Raises:
        KeyboardInterrupt: for Ctrl-C, so that a script can handle it.
        SystemExit: for any other signal, with its conventional exit status.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
