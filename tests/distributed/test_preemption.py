"""A job that is told to end stops in all its processes after the same update step, and goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from compat.checkpoint.selection import last_whole
from tests.distributed import jobs

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPT = str(Path(__file__).with_name("scripts") / "preempted.py")
PYTHON = (sys.executable, "-W", "ignore")
COMPAT_RUN = ("-m", "compat", "run", "--quiet")

# Enough for a machine with other work; a job that waits for ever would take torch's half hour.
SECONDS = 120


def told(
    command: list[str], folder: Path, tell: Callable[[int, list[int]], None], **variables: str
) -> tuple[int, str]:
    """Start a job, tell it to end while its third update step is under way, and wait for its end.

    Args:
        command: what starts it.
        folder: its own.
        tell: what tells it, given the process that was started and those of the ranks.
        variables: more of its environment.

    Returns:
        Its status, and what it has written to stderr.
    """
    process = subprocess.Popen(
        [*command, SCRIPT, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=jobs.ROOT,
        env=jobs.environment(TELLS="2", **variables),
        start_new_session=True,
    )
    try:
        files = [folder / f"{rank}.pid" for rank in range(2)]
        until = time.monotonic() + SECONDS
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        ranks = [int(file.read_text()) for file in files]
        tell(process.pid, ranks)
        time.sleep(0.2)
        (folder / "told").touch()
        # The pipe is at its end when the last process that writes to it has gone.
        _, error = process.communicate(timeout=SECONDS)
        return process.returncode, error
    finally:
        for child in [*_children(process.pid), process]:
            child.kill()


def _children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []


def steps_saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run").glob("checkpoint-*"))


def test_one_process_is_told_and_the_run_resumes(tmp_path: Path) -> None:
    command = [*PYTHON, *COMPAT_RUN, "--devices", "2"]
    status, error = told(command, tmp_path, lambda first, ranks: os.kill(ranks[1], signal.SIGUSR1))
    assert status == 128 + signal.SIGUSR1, error[-3000:]
    # It hears of it in the third step; all stop after the next one, which no process can have finished.
    assert steps_saved(tmp_path) == ["checkpoint-4"]
    assert error.count(f"SIGUSR1: training ends after update step 4, saved in `{tmp_path}") == 1
    assert not (tmp_path / "went-on").exists()
    jobs.finished(jobs.run([*command, SCRIPT, str(tmp_path)], seconds=SECONDS))
    first, second = (json.loads((tmp_path / f"weights-{rank}.json").read_text()) for rank in range(2))
    assert first["resumed"] == first["undisturbed"]
    assert second["resumed"] == second["undisturbed"]
    # The first process looks at its clock after the first step.
    assert first["limited"] == second["limited"] == 2
    assert [path.name for path in (tmp_path / "limited").glob("checkpoint-*")] == ["checkpoint-2"]


def test_torchrun_tells_all_and_their_workers(tmp_path: Path) -> None:
    found, error = told(
        jobs.torchrun(),
        tmp_path,
        lambda agent, _: os.kill(agent, signal.SIGTERM),
        LIBRARY="compat",
        WORKERS="1",
    )
    # torchrun has a status of its own.
    assert found == 1, error[-3000:]
    assert steps_saved(tmp_path) == ["checkpoint-4"], error[-3000:]
    assert last_whole(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")
    assert error.count("SIGTERM: training ends after update step 4") == 1
    assert "DataLoader worker" not in error
    assert not (tmp_path / "went-on").exists()
