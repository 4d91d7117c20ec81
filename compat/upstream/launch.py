"""Starting the other processes of a job, for a script that was started once."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from compat.errors import ArgumentError
from compat.upstream.process import command, free_port, is_launched

SECONDS_TO_END, SECONDS_TO_FAIL = 1800, 5
"""How long the other processes may continue after this one has ended (as long as they would wait for it in a
collective, `ddp_timeout`), and after it has failed (hardly at all)."""

SECONDS_TO_SAVE = 60
"""How long this process may continue after a signal has ended the others."""

TOLD_TO_END = (
    -signal.SIGINT,
    *(128 + getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)),
)
"""Statuses of a process that has ended as it was told to: by Ctrl-C, or by itself upon a signal."""

STARTED_BY = "COMPAT_STARTED_BY"
"""The variable with the first process, which a process started here must not outlive."""


def launch(devices: int, num_nodes: int = 1) -> None:
    """Start this program again for each further device, and make this process the first of the job.

    The processes connect through the variables that torchrun sets. If one fails, all are ended.

    Args:
        devices: processes on this machine.
        num_nodes: machines; the script is started once on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT.

    Raises:
        ArgumentError: there is no script to start again, or no address where the machines meet.
    """
    if is_launched():
        _follow_first()
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
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(free_port()),
        "WORLD_SIZE": str(devices * num_nodes),
        "LOCAL_WORLD_SIZE": str(devices),
    }
    ranks = [
        {**shared, "RANK": str(node * devices + local), "LOCAL_RANK": str(local)} for local in range(devices)
    ]
    variables = {**os.environ, STARTED_BY: str(os.getpid())}
    others = [subprocess.Popen(again, env={**variables, **rank}) for rank in ranks[1:]]  # noqa: S603
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
            f"`lightning={{'devices': {devices}}}`: there is no script to start for each device. Use "
            f"`compat.notebook_launcher(function, num_processes={devices})`, start a script, or use torchrun."
        )
        raise ArgumentError(msg)
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


class _Observer(_ChildProcessObserver):
    """Ends the job when one of its processes fails, and says which."""

    def _terminate_all(self) -> None:
        if all(process.poll() in (None, 0, *TOLD_TO_END) for process in self._child_processes):
            # All have received the signal: this process may save before it ends by itself.
            time.sleep(SECONDS_TO_SAVE)
        _report(self._child_processes)
        super()._terminate_all()


def _report(others: list[subprocess.Popen[Any]]) -> None:
    for local_rank, process in enumerate(others, start=1):
        if process.poll():
            _say(f"local rank {local_rank} {_end_of(process.returncode)}; the others are stopped")


def _end_of(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL: by hand, or by a system that is out of memory)"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"has ended with status {status}, its own message stands above"


def _say(what: str) -> None:
    sys.stderr.write(f"compat: {what}.\n")
    sys.stderr.flush()


def _follow_first() -> None:
    """In a process that was started here: end when the first process has exited, even if it was killed."""
    # Taken away: a process that the script starts from here is not one of the job's.
    first = os.environ.pop(STARTED_BY, None)
    # Windows puts a process of its own between a virtual environment's python and the one that started it.
    if first is not None and os.name == "posix":
        atexit.register(_has_gone, int(first))
        threading.Thread(target=_outlive, args=(int(first),), daemon=True, name="compat-follow").start()


def _outlive(first: int) -> None:
    while not _has_gone(first):
        time.sleep(1)
    os._exit(1)


def _has_gone(first: int) -> bool:
    """Whether the first process has exited before this one; if so, log it."""
    gone = os.getppid() != first
    if gone:
        _say(f"local rank 0 has gone; local rank {os.environ.get('LOCAL_RANK')} is stopped")
    return gone


def _end(others: list[subprocess.Popen[Any]]) -> None:
    """Wait for the other processes, and stop those that do not end."""
    failed = getattr(sys, "last_value", None) is not None
    seconds = SECONDS_TO_FAIL if failed else SECONDS_TO_END
    until = time.monotonic() + seconds
    for process in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, until - time.monotonic()))
    if failed:
        _report(others)
    for local_rank, process in enumerate(others, start=1):
        if process.poll() is None:
            _say(f"local rank {local_rank} is stopped: local rank 0 has ended {seconds} seconds ago")
            process.kill()
