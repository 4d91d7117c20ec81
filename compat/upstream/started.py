"""Joins a job and starts its other processes; without heavy imports, since all arguments call it."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from typing import Any

from compat.errors import ArgumentError
from compat.upstream import process

HOW_TO_START = (
    "Start with `torchrun` or `compat run --devices N`, or give "
    "`TrainingArguments(lightning={'devices': N})`, which starts the others."
)
"""The ways to a job of several processes."""

TOLD_BY_LIGHTNING = ("LOCAL_RANK", "WORLD_SIZE")
"""Variables of a process that a Lightning Trainer starts, from which HF would conclude a job."""


def join() -> None:
    """Set this process's rank from `srun`, if `srun` has started it."""
    if "SLURM_NTASKS" in os.environ:
        from compat.upstream import slurm

        slurm.join()


def is_ahead_of_group() -> bool:
    """Whether a Lightning Trainer has started this process, and has not yet formed its group.

    HF would take such a process for the first one, and wait for others on a port that is taken.
    """
    is_told_in_part = {"NODE_RANK", "LOCAL_RANK"} <= os.environ.keys() and "RANK" not in os.environ
    return is_told_in_part and not _has_group()


def require_group() -> None:
    """Refuse to train in a process that a Lightning Trainer has started for its own job.

    Raises:
        ArgumentError: the job is Lightning's, and HF's arguments do not know of it.
    """
    if is_ahead_of_group():
        msg = f"`devices`: Lightning has started a process that HF's arguments do not know of. {HOW_TO_START}"
        raise ArgumentError(msg)


def _has_group() -> bool:
    """Whether this process is one of a group already; torch is not loaded for the question."""
    distributed: Any = getattr(sys.modules.get("torch"), "distributed", None)
    return bool(distributed and distributed.is_available() and distributed.is_initialized())


def start(devices: int, num_nodes: int = 1) -> None:
    """Start this program again for each further device, unless a launcher has done so."""
    if process.is_launched() or devices * num_nodes > 1:
        from compat.upstream.launch import launch

        launch(devices, num_nodes)


def form_job_of_one() -> None:
    """Give this process the variables of a job that it is alone in, unless a launcher has given it some.

    DeepSpeed takes a process without them for one of MPI's, and asks MPI.
    """
    if process.is_launched():
        return
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(process.free_port()),
    )


@functools.cache
def warn_of_idle(gpus: int) -> None:
    """Warn once that only one of several GPUs is used."""
    warnings.warn(
        f"{gpus} GPUs are there, and one is used: HF would spread each batch over them in this process, "
        "which Lightning does not, and there is no script to start for each. Use "
        f"`compat.notebook_launcher(function, num_processes={gpus})`, `compat run script.py` or torchrun; "
        "`lightning={'devices': 1}` or CUDA_VISIBLE_DEVICES says that one is meant.",
        UserWarning,
        stacklevel=2,
    )
