"""Files that each process of a job writes for itself: their numbers show which ones are missing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

OF_RANKS = (
    r"rng_state_(\d+)\.pth",
    r"data_state_(\d+)\.pth",
    r"pytorch_model_fsdp(?:_\d+)?_rank(\d+)\.bin",
    r"global_step\d+/(?:\w+_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt",
    r"global_step\d+/(?:\w+_)?zero_pp_rank_(\d+)_mp_rank_00_model_states\.pt",
)
"""Path within a checkpoint of a file that every process writes, with its rank, counted from 0."""

OF_RANDOM_NUMBERS = ("rng_state_*.pth", "data_state_*.pth")
"""The files that hold random states; a run can resume without them, with other random numbers."""

_OPTIMIZERS, _MODELS = "_optim_states.pt", "_model_states.pt"


def missing_of_ranks(names: Collection[str], written: int = 0) -> Iterator[tuple[str, str]]:
    """Find the files of single processes that a checkpoint lacks.

    Args:
        names: every file, by its path within the checkpoint.
        written: the number of processes known to have written it.

    Yields:
        The first missing file of each kind, and how its absence is known.
    """
    there = [
        {int(found[1]): found for name in names if (found := re.fullmatch(pattern, name))}
        for pattern in OF_RANKS
    ]
    # A job of one process writes its random states without a number.
    processes = max((max(by_rank) + 1 for by_rank in there if by_rank), default=0)
    processes = max(processes, written, 2 if "rng_state_0.pth" in names else 0)
    for by_rank in there:
        absent = [rank for rank in range(processes) if rank not in by_rank]
        if by_rank and absent:
            other = next(iter(by_rank.values()))
            name = f"{other.string[: other.start(1)]}{absent[0]}{other.string[other.end(1) :]}"
            yield name, f"missing, and {processes} processes have written this checkpoint"
    lacking = _folders(names, _OPTIMIZERS) - _folders(names, _MODELS)
    if lacking:
        yield f"{min(lacking)}/mp_rank_00{_MODELS}", "missing: DeepSpeed's weights are not there"


def _folders(names: Collection[str], ending: str) -> set[str]:
    """Return the folders of files with a suffix."""
    return {name.rpartition("/")[0] for name in names if name.endswith(ending)}
