"""A Python whose libraries are loaded already, for tests that start scripts.

Loading torch, transformers and lightning takes a process some five seconds, and most scripts of the tests
less than that to run. One process, `server.py`, loads them once a session and runs nothing. `PYTHON` takes
words and gives a status as Python does: it has the server fork, and stands for what was forked, in its
output, its signals and its end. Its parent is another one: tests of how processes start and watch each other,
or of what they load, start the real thing.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

PYTHON = str(Path(__file__).with_name("python"))
"""The executable. The first one of a session starts the server, which ends with the session."""


def begin() -> None:
    """Tell the executable which Python it stands for, and which process is the session."""
    # Not in the folder for temporary files, whose path may be too long for a socket.
    os.environ.update(
        WARM_PYTHON=sys.executable,
        WARM_SESSION=str(os.getpid()),
        WARM_SOCKET=f"/tmp/warm-{os.getpid()}-{time.time_ns()}",  # noqa: S108 (nobody else guesses it)
    )
