"""Removal of old checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compat.checkpoint.atomic import remove
from compat.checkpoint.selection import is_loadable, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_CLOCK_IS_TRUE = 1.0
"""Seconds. If the times of checkpoints differ by no more, the file system does not keep real times."""


def rotate(
    folder: str | Path,
    limit: int | None,
    keep: Iterable[str | Path | None] = (),
    *,
    saved: str | Path | None = None,
    by_time: bool = True,
    is_alone: bool = True,
) -> list[str]:
    """Remove the oldest checkpoints beyond `limit`; the last one that a run can resume from is kept.

    Mirrors `transformers.trainer_utils.rotate_checkpoints`, which finds the last one only by its time.

    Args:
        folder: the one that holds the checkpoints.
        limit: how many to keep; all, if None or not positive.
        keep: those that are always kept in addition to the newest: the best one.
        saved: the one just saved, which is also kept.
        by_time: whether to order by time rather than by step.
        is_alone: whether checkpoints are complete on this disk; otherwise `keep` has the last loadable one.

    Returns:
        The checkpoints that were removed.
    """
    if not limit or limit <= 0:
        return []
    found = numbered(folder)[::-1]
    if len(found) <= limit:
        return []
    if by_time:
        found = by_age(found)
    kept = {_same(path) for path in (*keep, saved, found[-1]) if path is not None}
    surplus = len(found) - max(limit, sum(_same(path) in kept for path in found))
    doomed = [path for path in found if _same(path) not in kept][: max(surplus, 0)]
    stay = _others(found, doomed)
    if is_alone and doomed and not any(is_loadable(p, is_fresh=_are_same(p, saved)) for p in stay):
        last = next(filter(is_loadable, reversed(doomed)), None)
        doomed = [path for path in doomed if path != last]
    for path in doomed:
        remove(path)
    return doomed


def by_age(checkpoints: Sequence[str]) -> list[str]:
    """Sort checkpoints, oldest first, by their modification time if the file system keeps it.

    Args:
        checkpoints: in the order of their update steps.
    """
    times = {path: Path(path).stat().st_mtime for path in checkpoints}
    if not times or max(times.values()) - min(times.values()) < _CLOCK_IS_TRUE:
        return list(checkpoints)
    return sorted(checkpoints, key=lambda path: times[path])


def _others(found: Sequence[str], doomed: Sequence[str]) -> Iterator[str]:
    """Yield the checkpoints that are not to be removed, newest first."""
    gone = set(doomed)
    return (path for path in reversed(found) if path not in gone)


def _are_same(path: str, other: str | Path | None) -> bool:
    return other is not None and _same(path) == _same(other)


def _same(path: str | Path) -> str:
    return str(Path(path).resolve())
