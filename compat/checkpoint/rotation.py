"""Which checkpoints stay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compat.checkpoint.partial import remove
from compat.checkpoint.whole import is_loadable, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable

_CLOCK_IS_TRUE = 1.0
"""Seconds. Checkpoints whose times are no further apart lie on a file system that has no true ones."""


def rotate(
    folder: str | Path,
    limit: int | None,
    keep: Iterable[str | Path | None] = (),
    *,
    saved: str | Path | None = None,
    by_time: bool = True,
    is_alone: bool = True,
) -> list[str]:
    """Remove the oldest checkpoints beyond `limit`; the last one that a run can resume from stays.

    Mirrors `transformers.trainer_utils.rotate_checkpoints`, which finds the last one by its time alone.

    Args:
        folder: the one that holds the checkpoints.
        limit: how many may stay; all, where None or not positive.
        keep: those that stay in any case, beside the newest: the best one.
        saved: the one just saved, which stays, too.
        by_time: whether the oldest is that of the earliest time, rather than that of the lowest step.
        is_alone: whether checkpoints are whole on this disk; elsewhere `keep` has the last loadable one.

    Returns:
        The checkpoints that were removed.
    """
    found = by_age(folder) if by_time else numbered(folder)[::-1]
    if not limit or limit <= 0 or len(found) <= limit:
        return []
    kept = {_same(path) for path in (*keep, saved, found[-1]) if path is not None}
    surplus = len(found) - max(limit, sum(_same(path) in kept for path in found))
    doomed = [path for path in found if _same(path) not in kept][: max(surplus, 0)]
    stay = [path for path in reversed(found) if path not in doomed]
    is_saved = {path: saved is not None and _same(path) == _same(saved) for path in found}
    if is_alone and doomed and not any(is_loadable(path, is_fresh=is_saved[path]) for path in stay):
        last = next(filter(is_loadable, reversed(doomed)), None)
        doomed = [path for path in doomed if path != last]
    for path in doomed:
        remove(path)
    return doomed


def by_age(folder: str | Path) -> list[str]:
    """The checkpoints of a folder, the oldest first: by the time of their writing, where that is told."""
    steps = numbered(folder)[::-1]
    times = {path: Path(path).stat().st_mtime for path in steps}
    if not times or max(times.values()) - min(times.values()) < _CLOCK_IS_TRUE:
        return steps
    return sorted(steps, key=lambda path: times[path])


def _same(path: str | Path) -> str:
    return str(Path(path).resolve())
