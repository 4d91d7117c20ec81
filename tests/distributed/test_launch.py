"""Every way to start a job of two processes starts the same job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.distributed import jobs

SCRIPT = str(Path(__file__).with_name("scripts") / "train.py")
PYTHON = (warm.PYTHON, "-W", "ignore")
COMPAT_RUN = ("-m", "compat", "run", "--quiet")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1")

OPTIONS = (
    *("--use_cpu", "--max_steps", "4", "--per_device_train_batch_size", "3", "--learning_rate", "0.1"),
    *("--logging_steps", "1", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "True"),
)


def job(folder: Path) -> list[str]:
    return [SCRIPT, "--output_dir", str(folder), *OPTIONS]


def found(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return found(
        jobs.once(
            tmp_path_factory,
            "launched",
            lambda folder: jobs.finished(jobs.run(jobs.torchrun(*job(folder)))),
        )
    )


WAYS = {
    "torchrun -m compat run": lambda words: (
        jobs.torchrun(*COMPAT_RUN, *words),
        {},
    ),
    "python, devices asked for by the arguments": lambda words: (
        [sys.executable, "-W", "ignore", *words, "--lightning.devices", "2"],
        {"LIBRARY": "compat"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_job(tmp_path: Path, theirs: list[dict[str, Any]], way: str) -> None:
    command, variables = WAYS[way](job(tmp_path))
    jobs.finished(jobs.run(command, **variables))
    ours = found(tmp_path)
    assert {entry["engine"] for entry in ours} == {"compat.trainer.trainer"}
    assert [{**entry, "engine": ""} for entry in ours] == [{**entry, "engine": ""} for entry in theirs]


def test_srun_starts_the_same_job(tmp_path: Path, theirs: list[dict[str, Any]]) -> None:
    shared = {
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "train",
        "MASTER_PORT": str(jobs.free_port()),
    }
    tasks = [
        subprocess.Popen(
            [*PYTHON, *job(tmp_path)],
            env=jobs.environment(
                LIBRARY="compat", SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NODEID="0", **shared
            ),
            cwd=jobs.ROOT,
        )
        for rank in range(2)
    ]
    try:
        assert [task.wait(jobs.SECONDS) for task in tasks] == [0, 0]
    finally:
        for task in tasks:
            task.kill()
    ours = found(tmp_path)
    assert [{**entry, "engine": ""} for entry in ours] == [{**entry, "engine": ""} for entry in theirs]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_may_be_late_at_the_end(tmp_path: Path, rank: int) -> None:
    """Also where the first process holds the store by which they have met, as under mpirun."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(jobs.free_port()), "WORLD_SIZE": "2"}
    tasks = [
        subprocess.Popen(
            [*PYTHON, str(Path(SCRIPT).with_name("late.py")), str(tmp_path), str(rank)],
            env=jobs.environment(RANK=str(number), LOCAL_RANK=str(number), **shared),
            cwd=jobs.ROOT,
        )
        for number in range(2)
    ]
    try:
        assert [task.wait(jobs.SECONDS) for task in tasks] == [0, 0]
    finally:
        for task in tasks:
            task.kill()


NOTEBOOK = """
import os, sys
import compat
sys.path.insert(0, {folder!r})
os.environ["LIBRARY"] = "compat"
import train

def cell(*words):
    sys.argv[1:] = words
    train.main()

compat.notebook_launcher(cell, {words!r}, num_processes=2)
print("back", [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "MASTER_PORT")])
"""


def test_a_notebook_starts_the_same_job(tmp_path: Path, theirs: list[dict[str, Any]]) -> None:
    _, *words = job(tmp_path)
    code = NOTEBOOK.format(folder=str(Path(SCRIPT).parent), words=words)
    done = jobs.run([*PYTHON, "-c", code])
    jobs.finished(done)
    assert done.stdout.splitlines()[-1] == "back []"
    ours = found(tmp_path)
    assert {entry["engine"] for entry in ours} == {"compat.trainer.trainer"}
    assert [{**entry, "engine": ""} for entry in ours] == [{**entry, "engine": ""} for entry in theirs]


def test_what_each_process_knows(theirs: list[dict[str, Any]]) -> None:
    assert [entry["before"] for entry in theirs] == [
        [2, 0, 0, "ParallelMode.DISTRIBUTED"],
        [2, 1, 1, "ParallelMode.DISTRIBUTED"],
    ]
    assert theirs[0]["weights"] == theirs[1]["weights"]
    assert len(theirs[0]["predictions"]) == 7


def test_two_machines_of_one_process_each_and_an_evaluation_ahead_of_training(
    tmp_path: Path, theirs: list[dict[str, Any]]
) -> None:
    # Evaluated first, HF trains the ranks apart: accelerate takes the model for one that is wrapped already.
    port = jobs.free_port()
    agents = [
        subprocess.Popen(
            jobs.torchrun(*job(tmp_path), nodes=2, node=node, processes=1, port=port),
            env=jobs.environment(LIBRARY="compat", EVALUATES_FIRST="1"),
            cwd=jobs.ROOT,
        )
        for node in range(2)
    ]
    try:
        assert [agent.wait(jobs.SECONDS) for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            agent.kill()
    ours = found(tmp_path)
    assert [entry["before"] for entry in ours] == [
        [2, 0, 0, "ParallelMode.DISTRIBUTED"],
        [2, 1, 0, "ParallelMode.DISTRIBUTED"],
    ]
    for name in ("losses", "weights", "predictions"):
        assert [entry[name] for entry in ours] == [entry[name] for entry in theirs]


def test_sharding_that_accelerate_launch_asks_for(tmp_path: Path, theirs: list[dict[str, Any]]) -> None:
    sharded = ("--use_fsdp", "--fsdp_version=2", "--fsdp_state_dict_type=FULL_STATE_DICT")
    several = ("--num_processes=2", "--num_machines=1", f"--main_process_port={jobs.free_port()}")
    plain = ("--dynamo_backend=no", "--mixed_precision=no")
    launcher = (*PYTHON, "-m", "accelerate.commands.launch", *sharded, *several, *plain)
    jobs.finished(jobs.run([*launcher, *job(tmp_path)], LIBRARY="compat"))
    ours = found(tmp_path)
    assert [entry["is_sharded"] for entry in (*ours, *theirs)] == [True, True, False, False]
    for name in ("losses", "weights", "predictions"):
        assert [entry[name] for entry in ours] == [entry[name] for entry in theirs]


def test_a_precision_that_accelerate_launch_asks_for(tmp_path: Path) -> None:
    losses, precisions = {}, {}
    for library in ("transformers", "compat"):
        words = job(tmp_path / library)
        command = [*PYTHON, *ACCELERATE, "--dynamo_backend=no", "--mixed_precision=bf16", *words]
        jobs.finished(jobs.run(command, LIBRARY=library))
        written = json.loads((tmp_path / library / "rank-0.json").read_text())
        losses[library], precisions[library] = written["losses"], written["precision"]
    assert losses["compat"] == losses["transformers"]
    assert precisions == {"transformers": "bf16", "compat": "bf16"}


def test_without_a_script_there_is_nothing_to_start_again() -> None:
    code = "import compat; compat.TrainingArguments('out', use_cpu=True, lightning={'devices': 2})"
    done = jobs.run([*PYTHON, "-c", code])
    assert "there is no script to start for each device" in done.stderr
    assert "`compat.notebook_launcher(function, num_processes=2)`" in done.stderr
