"""Limits of a run that HF's arguments do not know."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback

from compat.errors import ArgumentError

UNITS = ("days", "hours", "minutes", "seconds")


class StopAfter(TrainerCallback):  # type: ignore[misc]
    """Stops a run when its time is up, and has it saved where it saves at all.

    Args:
        limit: a `timedelta`, its arguments by name, or text of the form "DD:HH:MM:SS", as Lightning's
            `max_time`.

    Raises:
        ArgumentError: the limit has another form.
    """

    def __init__(self, limit: timedelta | dict[str, float] | str) -> None:
        self._seconds = as_timedelta(limit).total_seconds()
        self._start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        if time.monotonic() - self._start >= self._seconds:
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy != "no"


def as_timedelta(limit: timedelta | dict[str, float] | str) -> timedelta:
    """`limit` in the form that Python has for it."""
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
