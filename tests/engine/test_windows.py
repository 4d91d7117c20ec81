from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from compat.engine.windows import ENDLESS, Window, count_windows, fetch_windows, window_at

if TYPE_CHECKING:
    from collections.abc import Iterator


def windows(start: int, **epoch: Any) -> Iterator[Window]:
    while (window := window_at(start, **epoch)) is not None:
        yield window
        if window.is_last:
            return
        start += window.count


def step_of(batch: int, *, size: int, length: int, carried: int) -> int:
    """The update step that a batch belongs to, counted batch by batch."""
    step = behind = 0
    for each in range(-carried, length):
        if each == batch:
            return step
        behind += 1
        if behind == size:
            step, behind = step + 1, 0
    raise AssertionError(batch)


@pytest.mark.parametrize("size", range(1, 6))
def test_windows_are_those_of_counting_batch_by_batch(size: int) -> None:
    for length, carried in product(range(1, 14), range(size)):
        epoch = {"size": size, "length": length, "carried": carried}
        steps = [step_of(batch, **epoch) for batch in range(length)]
        for start in range(length):
            expected = [steps[start:].count(step) for step in dict.fromkeys(steps[start:])]
            found = list(windows(start, **epoch))
            assert [window.count for window in found] == expected, (epoch, start)
            assert [window.is_last for window in found] == [False] * (len(found) - 1) + [True]
        assert count_windows(length, size=size, carried=carried) == steps[-1] + 1
        assert window_at(length, **{**epoch, "number": steps[-1] + 1}) in (None, window_at(length, **epoch))


def test_an_epoch_without_batches_has_no_window() -> None:
    assert list(windows(0, size=2, length=0)) == []


def test_a_number_that_was_counted_elsewhere_holds() -> None:
    # HF counts one window for data that says it has none, and asks it for a whole one.
    assert list(windows(0, size=2, length=0, number=1)) == [Window(2, is_last=True)]
    assert [window.count for window in windows(0, size=2, length=5, number=2)] == [2, 1]


@pytest.mark.parametrize("length", [math.inf, ENDLESS])
def test_data_without_an_end_has_no_last_window(length: float) -> None:
    assert window_at(10**9 + 1, size=4, length=length) == Window(3, is_last=False)


class Batches:
    def __init__(self, count: int) -> None:
        self.left = list(range(count))
        self.expected: list[int] = []

    def expect(self, count: int) -> None:
        self.expected.append(count)


def fetch(batches: Any, count: int) -> tuple[list[Any], Any]:
    taken, batches.left = batches.left[:count], batches.left[count:]
    return taken, sum(taken)


def test_windows_are_fetched_whole() -> None:
    batches: Any = Batches(5)
    fetched = list(fetch_windows(batches, 0, lambda at: window_at(at, size=2, length=5), fetch))
    assert [(one.batches, one.num_items, one.is_short, one.is_last) for one in fetched] == [
        ([0, 1], 1, False, False),
        ([2, 3], 5, False, False),
        ([4], 4, False, True),
    ]
    assert batches.expected == [2, 2, 1]


def test_data_that_runs_out_is_short_of_its_windows() -> None:
    batches: Any = Batches(3)
    fetched = list(fetch_windows(batches, 2, lambda at: window_at(at, size=2, length=7), fetch))
    assert [(one.batches, one.is_short) for one in fetched] == [([0, 1], False), ([2], True), ([], True)]
