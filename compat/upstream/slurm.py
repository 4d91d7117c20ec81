"""What SLURM says and takes: a process's rank, where `srun` has started the job, and a job to queue again."""

from __future__ import annotations

import os
import signal
import subprocess
import warnings
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterable

SECONDS_TO_REQUEUE = 60
"""How long `scontrol` may take; a controller under load answers late."""

RANKS_OF_SRUN = {"PMI_RANK": "SLURM_PROCID", "PMI_SIZE": "SLURM_NTASKS"}
"""What `srun --mpi=pmi2` tells under MPI's names, too."""

RANKS_OF_OTHERS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK")
"""Variables by which another launcher has given this process its rank, inside of SLURM or not."""


class Srun(SLURMEnvironment):
    """Lightning's reading of SLURM's variables, for every way to say the number of tasks."""

    @staticmethod
    @override
    def detect() -> bool:
        """Whether `srun` has started several processes, of which this is one.

        An allocation alone starts none: neither a shell in it, nor a batch script outside of `srun`.
        """
        if any(name in os.environ for name in RANKS_OF_OTHERS) and not _is_told_by_srun_alone():
            return False
        if os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in os.environ:
            return False
        with warnings.catch_warnings():
            # Lightning recommends srun wherever it is installed.
            warnings.simplefilter("ignore")
            is_used = SLURMEnvironment.detect()
        return is_used and "SLURM_PROCID" in os.environ and int(os.environ["SLURM_NTASKS"]) > 1

    @staticmethod
    @override
    def _validate_srun_variables() -> None:
        """Do nothing: `srun --ntasks 4` works as well as `--ntasks-per-node 4`."""

    def local_size(self) -> int:
        """Number of the job's processes on a machine."""
        per_node = os.environ.get("SLURM_NTASKS_PER_NODE", "")
        nodes = os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or "1"
        return int(per_node) if per_node.isdigit() else max(1, self.world_size() // int(nodes))


def _is_told_by_srun_alone() -> bool:
    own = {name for name, same in RANKS_OF_SRUN.items() if os.environ.get(name) == os.environ.get(same)}
    return "PMI_RANK" in own and not any(name in os.environ for name in RANKS_OF_OTHERS if name not in own)


def join() -> None:
    """Set the variables of torchrun from those of SLURM, where `srun` has started this process.

    HF's Trainer reads only torchrun's variables: under `srun python script.py` each process would train
    separately.
    """
    if not Srun.detect():
        return
    job = Srun(auto_requeue=False)
    os.environ.update(
        RANK=str(job.global_rank()),
        LOCAL_RANK=str(job.local_rank()),
        WORLD_SIZE=str(job.world_size()),
        LOCAL_WORLD_SIZE=str(job.local_size()),
        MASTER_ADDR=job.main_address,
        MASTER_PORT=str(job.main_port),
    )


def requeue_signal(plugins: Iterable[Any] = ()) -> int | None:
    """Return the signal on which this job is requeued; None if it is not.

    Args:
        plugins: those of Lightning's; a `SLURMEnvironment` among them says whether and when.
    """
    if SLURMEnvironment.job_id() is None:
        # Interactive jobs are not requeued.
        return None
    for plugin in plugins:
        if isinstance(plugin, SLURMEnvironment):
            return plugin.requeue_signal if plugin.auto_requeue else None
    return signal.SIGUSR1


def job_name() -> str:
    """The name of this job for `scontrol`, which has a form of its own for a part of an array."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def requeue() -> str:
    """Requeue this job.

    Mirrors Lightning's `_SignalConnector`, which does so before it is known that there is a checkpoint.

    Returns:
        The reason for a failure; empty on success.
    """
    try:
        done = subprocess.run(  # noqa: S603
            ["scontrol", "requeue", job_name()],  # noqa: S607 (where it lies is the cluster's affair)
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_REQUEUE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
