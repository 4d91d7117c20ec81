"""A process of a job that dies takes the others along, and leaves a checkpoint from which the job resumes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from compat.checkpoint.selection import last_whole
from tests.distributed import jobs

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPTS = Path(__file__).with_name("scripts")
PYTHON = (sys.executable, "-W", "ignore")
DIES = str(SCRIPTS / "dies.py")

# Enough for a machine with other work; a job that waits for ever would take torch's half hour.
SECONDS = 120

WAYS: dict[str, Callable[[Path], tuple[list[str], dict[str, Any]]]] = {
    "compat run": lambda folder: (
        [*PYTHON, "-m", "compat", "run", "--quiet", "--devices", "2", DIES, str(folder)],
        {},
    ),
    "devices": lambda folder: ([*PYTHON, DIES, str(folder), "devices"], {"LIBRARY": "compat"}),
}


def run(way: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command, more = WAYS[way](folder)
    return jobs.run(command, seconds=SECONDS, **variables, **more)


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended, or is another user's
        return []


def left(folder: Path) -> list[int]:
    return [process.pid for process in psutil.process_iter() if str(folder) in words_of(process)]


@pytest.mark.parametrize(
    ("way", "rank", "how", "said"),
    [
        ("compat run", 1, "is killed", ("local rank 1 was killed (SIGKILL: ",)),
        # A process that waits for the other one's gradients may hear of its end from gloo, and end by itself.
        (
            "devices",
            0,
            "is killed",
            (
                "local rank 0 has gone; local rank 1 is stopped",
                "Connection closed by peer",
                "Connection reset by peer",
            ),
        ),
    ],
    ids=["compat run", "devices"],
)
def test_the_others_stop_and_the_run_resumes(
    tmp_path: Path, way: str, rank: int, how: str, said: tuple[str, ...]
) -> None:
    # A rank reads two samples a step, and saves every fifth step; it is to die at any moment after the first.
    at = random.randint(12, 76)  # noqa: S311
    start = time.monotonic()
    done = run(way, tmp_path, RANK_THAT_DIES=str(rank), HOW=how, AT=str(at))
    assert time.monotonic() - start < SECONDS, f"at sample {at}"
    assert done.returncode != 0
    assert any(text in done.stderr for text in said), f"at sample {at}:\n{done.stderr[-3000:]}"
    assert left(tmp_path) == []
    assert last_whole(tmp_path / "run") is not None
    if way == "compat run":
        jobs.finished(run(way, tmp_path))
        first, second = (json.loads((tmp_path / f"weights-{rank}.json").read_text()) for rank in range(2))
        assert first["resumed"] == first["undisturbed"] == second["resumed"] == second["undisturbed"]


def test_a_signal_to_the_first_process_ends_all(tmp_path: Path) -> None:
    jobs_of = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        folder.mkdir()
        jobs_of[number] = subprocess.Popen(
            [*PYTHON, str(SCRIPTS / "waits.py"), str(folder)],
            stderr=subprocess.PIPE,
            env=jobs.environment(),
            start_new_session=True,
        )
    try:
        for number, process in jobs_of.items():
            pids = [tmp_path / number.name / f"{rank}.pid" for rank in range(2)]
            until = time.monotonic() + SECONDS
            while not all(pid.exists() for pid in pids):
                assert time.monotonic() < until
                time.sleep(0.1)
            # Ctrl-C reaches the group, other signals the process that was started.
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        for number, process in jobs_of.items():
            # The pipe is at its end when the last process that writes to it has gone.
            _, error = process.communicate(timeout=SECONDS)
            assert process.returncode == -number
            assert b"compat: local rank" in error
        assert left(tmp_path) == []
        assert (tmp_path / "SIGINT" / "saved").exists(), "the first process was not given time to save"
    finally:
        for process in jobs_of.values():
            process.kill()
