"""Accumulation windows: the batches of one update step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compat.engine.position import Batches
    from compat.upstream.values import NumItems

ENDLESS = 2**53
"""The length of data that is read to its end. If data has a length, Lightning does not prefetch. Prefetching
would shift the flags (last batch, samples left) that accelerate's loaders set for the current batch."""


@dataclass(frozen=True, slots=True)
class Window:
    """An accumulation window, or the rest of one.

    Attributes:
        count: micro-batches to fetch.
        is_last: whether it is the last one of its epoch.
    """

    count: int
    is_last: bool


def window_at(
    start: int, *, size: int, length: float, carried: int = 0, number: int | None = None
) -> Window | None:
    """Return the window that a micro-batch belongs to, starting at that micro-batch.

    Args:
        start: index of the micro-batch in its epoch.
        size: micro-batches of a full window.
        length: micro-batches of the epoch.
        carried: micro-batches of an incomplete window of the previous epoch, which this epoch completes.
        number: windows of the epoch; computed from the length by default.

    Returns:
        The window; None after the last one.
    """
    if number is None:
        number = count_windows(length, size=size, carried=carried)
    index, behind = divmod(carried + start, size)
    if index >= number:
        return None
    is_last = index == number - 1
    whole = int((carried + length) % size or size) if is_last else size
    return Window(whole - behind, is_last)


def count_windows(length: float, *, size: int, carried: int = 0) -> int:
    """Return the number of windows in an epoch, including a shorter last one.

    Args:
        length: micro-batches of the epoch; infinite for data that is read to its end.
        size: micro-batches of a full window.
        carried: micro-batches of an incomplete window of the previous epoch.
    """
    return ENDLESS if length >= ENDLESS else -(-(carried + int(length)) // size)


@dataclass(frozen=True, slots=True)
class Fetched:
    """The batches of a window.

    Attributes:
        batches: fewer than the window's count if the data is exhausted.
        num_items: what the whole window counts, `num_items_in_batch` in HF's words.
        is_short: whether there are fewer.
        is_last: whether the window is the last one of its epoch.
    """

    batches: list[Any]
    num_items: NumItems
    is_short: bool
    is_last: bool


def fetch_windows(
    batches: Batches,
    start: int,
    window_from: Callable[[int], Window | None],
    fetch: Callable[[Batches, int], tuple[list[Any], Any]],
) -> Iterator[Fetched]:
    """Fetch the batches of an epoch, a window at a time: HF counts a window before its first forward.

    Args:
        batches: yields the batches from `start` on.
        start: index in the epoch of the first one.
        window_from: the window at an index.
        fetch: HF's `get_batch_samples`, given the batches and their number.
    """
    while (window := window_from(start)) is not None:
        batches.expect(window.count)
        fetched, num_items = fetch(batches, window.count)
        yield Fetched(fetched, num_items, len(fetched) < window.count, window.is_last)
        if window.is_last:
            return
        start += window.count
