"""Starting the other processes of a job, for a script that was started once."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from compat.errors import ArgumentError

SECONDS_TO_END, SECONDS_TO_FAIL = 60, 5
"""How long the other processes may go on when this one has ended, and when it has failed."""

command: list[str] = []
"""What starts this program once more; `compat run` sets it, since the script alone would run without it."""


def is_launched() -> bool:
    """Whether a launcher has already told this process its rank."""
    return any(name in os.environ for name in ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))


def launch(devices: int, num_nodes: int = 1) -> None:
    """Start this program again for each further device, and make this process the first of the job.

    The processes find each other by the variables that torchrun sets. One that fails ends all.

    Args:
        devices: processes on this machine.
        num_nodes: machines; the script is started once on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT.

    Raises:
        ArgumentError: there is no script to start again, or no address where the machines meet.
    """
    if is_launched() or devices * num_nodes == 1:
        return
    again = command or _script_again(devices)
    node = int(os.environ.get("NODE_RANK", "0"))
    if num_nodes > 1 and not {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        msg = (
            f"`num_nodes={num_nodes}`: the machines do not know where to meet. Set NODE_RANK, MASTER_ADDR "
            "and MASTER_PORT on each, or start with torchrun."
        )
        raise ArgumentError(msg)
    shared = {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        "WORLD_SIZE": str(devices * num_nodes),
        "LOCAL_WORLD_SIZE": str(devices),
    }
    ranks = [
        {**shared, "RANK": str(node * devices + local), "LOCAL_RANK": str(local)} for local in range(devices)
    ]
    others = [subprocess.Popen(again, env={**os.environ, **rank}) for rank in ranks[1:]]  # noqa: S603
    os.environ.update(ranks[0])
    _Observer(main_pid=os.getpid(), child_processes=others, sleep_period=1).start()
    atexit.register(_end, others)


def _script_again(devices: int) -> list[str]:
    import __main__

    module = getattr(__main__.__spec__, "name", None)
    if module:
        return [sys.executable, "-m", module.removesuffix(".__main__"), *sys.argv[1:]]
    if not os.path.isfile(sys.argv[0]):
        msg = (
            f"`lightning={{'devices': {devices}}}`: there is no script to start for each device. "
            "Start a script, or use torchrun."
        )
        raise ArgumentError(msg)
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class _Observer(_ChildProcessObserver):
    """Ends the job when one of its processes fails, and says which."""

    def _terminate_all(self) -> None:
        _report(self._child_processes)
        super()._terminate_all()


def _report(others: list[subprocess.Popen[Any]]) -> None:
    for local_rank, process in enumerate(others, start=1):
        if process.poll():
            sys.stderr.write(
                f"compat: local rank {local_rank} has ended with status {process.returncode}; the others are "
                "stopped. Its own message stands above.\n"
            )
            sys.stderr.flush()


def _end(others: list[subprocess.Popen[Any]]) -> None:
    """Leave no process behind: they end by themselves, or are stopped."""
    failed = getattr(sys, "last_value", None) is not None
    for process in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_FAIL if failed else SECONDS_TO_END)
    if failed:
        _report(others)
    for process in others:
        if process.poll() is None:
            process.kill()
