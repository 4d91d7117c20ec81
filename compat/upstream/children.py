"""Starts a command or a function in one or several processes, and ends them for certain."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Protocol

from compat.upstream.process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.process import BaseProcess
    from types import FrameType

SECONDS_TO_END = 5
"""How long a process may continue after it was told to end."""

PARENT = "COMPAT_CHILD_OF"
"""The variable with the process that started this one, and that this one must not outlive."""

OF_LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "TORCHELASTIC_",
)
"""Prefixes of the variables of a launcher; processes that are started here are not part of its job."""


class Child(Protocol):
    """A process that was started here."""

    @property
    def pid(self) -> int | None:
        """Its number."""

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""


class _Forked:
    """A function in a forked process."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode


def visible_gpus(count: int) -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES chooses each of the GPUs that this process sees.

    Args:
        count: how many it sees.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",")[:count] if chosen else [str(number) for number in range(count)]


def launched_rank() -> int | None:
    """Return the local rank that a launcher has given this process, or None."""
    local = os.environ.get("LOCAL_RANK")
    return None if local is None else int(local)


def launched_size() -> tuple[int, int]:
    """Return the number of processes of the launcher's job: on this machine, and on all of them."""
    total = int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("LOCAL_WORLD_SIZE", total)), total


def variables_of(processes: int, more: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the variables of each process of a job; a job of one process gets one device and no rank.

    Args:
        processes: how many.
        more: further variables.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    base = {**kept, **more, PARENT: str(os.getpid())}
    if processes == 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            base.pop(name, None)
        # HF would spread each batch over all GPUs in this process, which is another training.
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        return [{**base, "CUDA_VISIBLE_DEVICES": first, **more}]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [
        {**base, **meeting, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)
    ]


def rank() -> int:
    """Return the rank of this process in its job."""
    return int(os.environ.get("RANK", "0"))


def start_command(command: Sequence[str], variables: Mapping[str, str], log: str) -> Child:
    """Start a command in a session of its own, which signals of the terminal do not reach.

    Args:
        command: its words.
        variables: its environment.
        log: the file for its output.
    """
    with open(log, "wb") as output:
        return subprocess.Popen(  # noqa: S603
            command,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_function(function: Callable[[], None], variables: Mapping[str, str], log: str) -> Child:
    """Start a function in a forked process, in a session of its own.

    Args:
        function: need not be importable.
        variables: its environment.
        log: the file for its output.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_run_forked, args=(function, dict(variables), log)
    )
    process.start()
    return _Forked(process)


def _run_forked(function: Callable[[], None], variables: dict[str, str], log: str) -> None:
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # A notebook's streams write to the notebook, from whatever process.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (for as long as the process)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(variables)
    follow_parent()
    try:
        function()
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001 (whatever it raises is shown, and ends this process)
        traceback.print_exc()
        sys.stderr.flush()
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()


def follow_parent() -> None:
    """End this process when the one that started it has gone, even if that was killed.

    Not where another process stands between the two, as on Windows in a virtual environment.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is not None and os.getppid() == int(parent):
        threading.Thread(target=_outlive, args=(int(parent),), daemon=True, name="compat-follow").start()


def _outlive(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


@contextlib.contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Have signals that end this process raise first, so that it ends its children and removes its files.

    Ctrl-C raises `KeyboardInterrupt`, the others `SystemExit` with the status that shells give. Further
    signals are ignored meanwhile. In threads other than the main one, which receive no signals, nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end a process unless it handles them."""


def end(children: Sequence[Child]) -> None:
    """End processes and all that they have started: they are told to, and killed if they do not."""
    for number, seconds in ((signal.SIGTERM, SECONDS_TO_END), (_KILL, SECONDS_TO_END)):
        for child in children:
            _signal_group(child, number)
        until = time.monotonic() + seconds
        while any(child.poll() is None for child in children) and time.monotonic() < until:
            time.sleep(0.05)


_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def _signal_group(child: Child, number: signal.Signals) -> None:
    if child.pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            # Also where the process itself has ended: its workers may not have.
            os.killpg(child.pid, number)
        elif child.poll() is None:
            os.kill(child.pid, number)
