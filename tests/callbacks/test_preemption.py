from __future__ import annotations

import signal
from typing import Any

import pytest

from compat.callbacks.preemption import SIGNALS, TIME, Ending, leave
from compat.upstream.stop_consensus import LocalStop, Stop


class Job(LocalStop):
    """A consensus among processes of which this is one."""

    ahead = 1


def ending(agreed: LocalStop, *reasons: Any) -> Ending:
    """One whose process gives these reasons, one after the other, and then none."""
    left = list(reasons)
    return Ending(agreed, lambda: left.pop(0) if left else None)


def test_the_signals_are_those_of_schedulers_and_of_a_keyboard() -> None:
    assert {number.name for number in SIGNALS} == {"SIGTERM", "SIGUSR1", "SIGINT"}


def test_one_process_stops_where_it_is() -> None:
    made = ending(LocalStop(), None, 15)
    assert [made.is_due(step) for step in (1, 2)] == [False, True]
    assert (made.cause, made.is_agreed) == (15, True)


def test_a_process_of_a_job_stops_after_the_next_step() -> None:
    made = ending(Job(), 15)
    assert [made.is_due(step) for step in (1, 1, 2)] == [False, False, True]


def test_a_process_that_was_told_nothing_stops_with_the_others() -> None:
    job = Job()
    made = ending(job)
    assert not made.is_due(1)
    job.propose(3, signal.SIGUSR1)
    assert [made.is_due(step) for step in (2, 3)] == [False, True]
    assert made.cause == signal.SIGUSR1


@pytest.mark.parametrize(
    ("reason", "proposed", "cause"),
    [
        (None, None, None),
        (15, None, 15),
        (None, Stop(9, 15), 15),
        (TIME, None, None),
        (None, Stop(9, TIME), None),
    ],
)
def test_what_came_too_late_ends_the_process_and_time_does_not(
    reason: int | None, proposed: Stop | None, cause: int | None
) -> None:
    job = Job()
    if proposed is not None:
        job.propose(proposed.step, proposed.reason)
    made = ending(job, reason)
    made.conclude()
    assert (made.cause, made.is_agreed) == (cause, False)


def test_leaving() -> None:
    with pytest.raises(KeyboardInterrupt):
        leave(signal.SIGINT)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGUSR1, 128 + signal.SIGUSR1)):
        with pytest.raises(SystemExit) as caught:
            leave(number)
        assert caught.value.code == status
