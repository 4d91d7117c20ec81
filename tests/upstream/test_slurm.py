from __future__ import annotations

import os

import pytest

from compat.upstream import slurm

TASK = {
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "node[07-08]",
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NAME": "train",
}
"""What `srun --nodes 2 --ntasks 4` tells its last task."""

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch):
    def join(**variables: str) -> dict[str, str]:
        for name in (*NAMES, *(name for name in os.environ if name.startswith(("SLURM_", "PMI_", "OMPI_")))):
            # Set first, so that what `join` sets is taken away again.
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in {**TASK, **variables}.items():
            monkeypatch.setenv(name, value)
            if not value:
                monkeypatch.delenv(name)
        slurm.join()
        return {name: os.environ[name] for name in NAMES if name in os.environ}

    return join


def test_a_task_of_srun(joined) -> None:
    assert joined() == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node07",
        "MASTER_PORT": "19567",
    }


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({"SLURM_NTASKS_PER_NODE": "2"}, "2"),
        ({"SLURM_STEP_NUM_NODES": "1"}, "4"),
        ({"SLURM_NNODES": ""}, "4"),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, "2"),
        ({"ENVIRONMENT": "BATCH", "SLURM_STEP_ID": "0"}, "2"),
    ],
)
def test_tasks_on_a_machine(joined, variables: dict[str, str], size: str) -> None:
    assert joined(**variables)["LOCAL_WORLD_SIZE"] == size


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_JOB_NAME": "bash"},
        {"SLURM_JOB_NAME": "interactive"},
        {"SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": ""},
        {"SLURM_PROCID": ""},
        {"ENVIRONMENT": "BATCH"},
    ],
    ids=str,
)
def test_an_allocation_alone_is_no_job(joined, variables: dict[str, str]) -> None:
    assert joined(**variables) == {}


def test_other_launchers_inside_of_slurm_are_left_alone(joined) -> None:
    assert joined(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2") == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
    }
    assert joined(OMPI_COMM_WORLD_RANK="1") == {}
    assert joined(PMI_RANK="0", PMI_SIZE="8") == {}


def test_a_meeting_point_that_was_given_stays(joined) -> None:
    found = joined(MASTER_ADDR="10.0.0.1", MASTER_PORT="29400")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "29400")
