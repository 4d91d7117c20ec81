"""Files of which each process of a job writes its own: by their numbers, one that is missing is missed."""

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
"""Path within a checkpoint of what every process writes, with its number; processes count from 0."""

OF_RANDOM_NUMBERS = ("rng_state_*.pth", "data_state_*.pth")
"""Those that hold random numbers, without which a run goes on, with others."""

_OPTIMIZERS, _MODELS = "_optim_states.pt", "_model_states.pt"


def missing_of_ranks(names: Collection[str], written: int = 0) -> Iterator[tuple[str, str]]:
    """The files of single processes that a checkpoint lacks.

    Args:
        names: every file, by its path within the checkpoint.
        written: how many processes are known to have written it.

    Yields:
        The first file of each kind that is missing, and how that is known.
    """
    there = [
        {int(found[1]): found for name in names if (found := re.fullmatch(pattern, name))}
        for pattern in OF_RANKS
    ]
    # A job of one process gives its random states no number.
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
    """Where files of an ending lie."""
    return {name.rpartition("/")[0] for name in names if name.endswith(ending)}
