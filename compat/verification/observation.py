"""Runs a script or function in this process, recorded."""

from __future__ import annotations

import os
import random
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import torch

from compat.verification.mirror import Mirror
from compat.verification.recorder import Recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.verification.job import Job


def observed(job: Job, rank: int, run: Callable[[], None]) -> None:
    """Seed the generators, run, and record; files are recorded if the run ends well.

    Args:
        job: the run.
        rank: of this process.
        run: trains, with whatever Trainer it makes.
    """
    os.chdir(job.place)
    tempfile.tempdir = job.temporary  # TMPDIR says so, too, but may have been read before
    recording = Recording(job, rank, Mirror(job.home))
    recording.attach()
    random.seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002 (the generator that scripts draw from)
    torch.manual_seed(job.seed)
    try:
        run()
    except SystemExit as ended:
        if ended.code:
            raise
    recording.finish()
