"""Starting a job of several processes on this machine, and waiting for its end."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock

from tests.warm import PYTHON

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 200


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def torchrun(
    *words: str, nodes: int = 1, node: int = 0, processes: int = 2, port: int | None = None
) -> list[str]:
    """The command line of one torchrun agent."""
    return [
        *(PYTHON, "-W", "ignore", "-m", "torch.distributed.run"),
        *(f"--nnodes={nodes}", f"--node_rank={node}", f"--nproc_per_node={processes}"),
        *("--master_addr=127.0.0.1", f"--master_port={port or free_port()}"),
        *words,
    ]


def run(
    command: Sequence[str], *, folder: Path | None = None, seconds: int = SECONDS, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        command: the words of it.
        folder: where.
        seconds: after which it is killed, with its children.
        more: variables of its environment.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder or ROOT,
        env=environment(**more),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # torchrun starts its processes in sessions of their own.
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder of jobs that all workers of pytest's share: the first that asks for it runs them.

    Args:
        factory: the session's.
        name: of the folder.
        make: what runs the jobs, given the folder.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


def finished(done: subprocess.CompletedProcess[str]) -> None:
    """Fail with the job's own words if it did not end well."""
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
