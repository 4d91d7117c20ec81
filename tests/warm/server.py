"""Loads what scripts load, and forks for whoever asks; see `tests/warm/__init__.py`.

    python tests/warm/server.py SOCKET PROCESS

It ends with the process of that number.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import warnings
from typing import Any

import numpy as np

LOADED = ("torch", "torch.distributed.run", "transformers.trainer", "lightning.pytorch", "datasets", "peft")
"""What is loaded beforehand. Not `compat`, of which tests look at how it is loaded."""

Request = dict[str, Any]


def serve(path: str, session: int) -> Request:
    """Fork for each request; return in what was forked, with the request."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a session that was killed, long ago
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for the status of keepers
    while _is_alive(session):
        if not select.select([listener], [], [], 1)[0]:
            continue
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return keep(client)
        client.close()
    for end in ("", ".lock", ".log"):
        os.unlink(path + end)
    os._exit(0)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def keep(client: socket.socket) -> Request:
    """Fork once more, and return there; here, report its end, and end it when nobody listens any more."""
    head, streams, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as file:
        request: Request = json.loads(file.read(int.from_bytes(head, "big")))
    process = os.fork()
    if process == 0:
        client.close()
        os.setsid()
        np.random.seed()  # noqa: NPY002 (the generator that every fork would share)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return request
    for stream in streams:
        os.close(stream)
    client.sendall(f"{process}\n".encode())
    ended = os.pidfd_open(process)
    ready, _, _ = select.select([client, ended], [], [])
    if ended not in ready:
        os.killpg(process, signal.SIGKILL)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(request: Request) -> None:
    """Do what Python does with such words, in such an environment."""
    os.environ.clear()
    os.environ.update(request["variables"])
    os.chdir(request["folder"])
    words = iter(request["words"])
    kind = next(words)
    while kind in {"-W", "-u"}:
        if kind == "-W":
            warnings.simplefilter(next(words))
        kind = next(words)
    target = next(words) if kind in {"-m", "-c"} else kind
    # What this process starts by the name of its Python is as warm.
    sys.executable = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python")
    sys.orig_argv = [sys.executable, *request["words"]]
    sys.argv = [kind if kind == "-c" else target, *words]
    sys.path[0] = os.path.dirname(os.path.abspath(target)) if kind == target else os.getcwd()
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if kind == "-c":
        exec(compile(target, "<string>", "exec"), sys.modules["__main__"].__dict__)  # noqa: S102
    elif kind == "-m":
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")


def end(request: Request) -> None:
    """Become what was asked for, and end as Python does, but for taking down what was loaded."""
    status: Any = 0
    try:
        become(request)
    except SystemExit as error:
        status = error.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except KeyboardInterrupt:
        status = -signal.SIGINT
    except BaseException:  # noqa: BLE001 (whatever a script raises)
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(1 if isinstance(status, str) else status or 0)


if __name__ == "__main__":
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is loaded is never looked at again, and its memory stays shared
    end(serve(sys.argv[1], int(sys.argv[2])))
