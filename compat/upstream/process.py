"""How this process was started; light, since each set of arguments asks."""

from __future__ import annotations

import builtins
import multiprocessing
import os
import socket
import sys

command: list[str] = []
"""What starts this program once more; `compat run` sets it, since the script alone would run without it."""

is_told = False
"""Whether `compat run --devices` has said how many processes there are."""


def is_launched() -> bool:
    """Whether a launcher has already set the rank of this process."""
    return any(name in os.environ for name in ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))


def has_script() -> bool:
    """Whether this process can be restarted automatically: it runs a script and is not interactive."""
    import __main__

    if command:
        return True
    path = str(getattr(__main__, "__file__", None) or "")
    is_plain = getattr(__main__, "__spec__", None) is None and path.endswith(".py") and os.path.isfile(path)
    # Workers of other libraries are scripts, too; those of multiprocessing have a parent.
    is_ours = "site-packages" not in path and multiprocessing.parent_process() is None
    is_typed_at = sys.flags.interactive or hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")
    return is_plain and is_ours and not is_typed_at and "PYTEST_CURRENT_TEST" not in os.environ


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
