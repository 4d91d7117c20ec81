"""Limits of a run that HF's arguments do not have."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = ("days", "hours", "minutes", "seconds")


class TimeLimit:
    """Determines when a run must stop so that it can be saved before its time limit.

    The estimate uses the longest update step, evaluation and save measured so far. Operations that have not
    been measured yet count as zero.

    Args:
        limit: a `timedelta`, a dict of its arguments, or a string "DD:HH:MM:SS", as for Lightning's
            `max_time`.

    Raises:
        ArgumentError: the limit has another format.
    """

    def __init__(self, limit: timedelta | dict[str, float] | str) -> None:
        self._seconds = as_timedelta(limit).total_seconds()
        self._longest = {"step": 0.0, "evaluation": 0.0, "save": 0.0}
        self._until = self._step_began = 0.0

    def begin(self, start: float) -> None:
        """Start the clock, and the first update step.

        Args:
            start: when the run began, as `time.monotonic`.
        """
        self._until = start + self._seconds
        self._step_began = time.monotonic()

    @contextlib.contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Measure an "evaluation" or a "save", and exclude it from the time of the update step."""
        began, step_began = time.monotonic(), self._step_began
        try:
            yield
        finally:
            took = time.monotonic() - began
            self._longest[what] = max(self._longest[what], took)
            self._step_began = step_began + took

    def end_step(self) -> None:
        """End an update step, and start the next one."""
        now = time.monotonic()
        self._longest["step"] = max(self._longest["step"], now - self._step_began)
        self._step_began = now

    def is_up(self, steps: int = 1, *, evaluates: bool = False) -> bool:
        """Whether further update steps, and a save after them, may exceed the limit.

        Args:
            steps: the number of update steps.
            evaluates: whether there is an evaluation before the save.
        """
        takes = steps * self._longest["step"] + self._longest["save"]
        takes += self._longest["evaluation"] if evaluates else 0.0
        return time.monotonic() + takes >= self._until


def as_timedelta(limit: timedelta | dict[str, float] | str) -> timedelta:
    """Convert `limit` to a `timedelta`."""
    try:
        if isinstance(limit, timedelta):
            return limit
        if isinstance(limit, dict):
            return timedelta(**limit)
        numbers = [int(part) for part in limit.split(":")]
        return timedelta(**dict(zip(UNITS[-len(numbers) :], numbers, strict=True)))
    except (AttributeError, TypeError, ValueError) as error:
        msg = f"`lightning={{'max_time': {limit!r}}}`: no length of time ({error}). Give 'DD:HH:MM:SS'."
        raise ArgumentError(msg) from error
