"""What a test can leave behind in the process: seen before it, compared after it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from typing import Any

import torch

PREFIXES = ("ACCELERATE_", "FSDP_", "PL_", "TORCHELASTIC_")
RANKS = {
    "GROUP_RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "RANK",
    "WORLD_SIZE",
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def snapshot() -> dict[str, Any]:
    """Look at what no test may change."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "environment": {
            name: value for name, value in os.environ.items() if name in RANKS or name.startswith(PREFIXES)
        },
        "process group": distributed,
        "signal handlers": {number.name: signal.getsignal(number) for number in SIGNALS},
        "processes": {child.name for child in multiprocessing.active_children()},
        "threads": {
            thread.name for thread in threading.enumerate() if not thread.daemon and thread.is_alive()
        },
    }


def settled(before: dict[str, Any]) -> dict[str, Any]:
    """Look again, giving threads that have lost their owner a moment to end.

    Args:
        before: an earlier look.
    """
    after = snapshot()
    if after["threads"] - before["threads"]:
        gc.collect()
        for thread in threading.enumerate():
            if thread.name in after["threads"] - before["threads"]:
                thread.join(timeout=1)
        after = snapshot()
    return after


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs between two looks.

    Args:
        before: the earlier one.
        after: the later one; a thread or process that has ended is no change.
    """
    after = {**after, **{what: after[what] | before[what] for what in ("processes", "threads")}}
    return [f"{what}: {before[what]} → {after[what]}" for what in before if before[what] != after[what]]


def clean_up(before: dict[str, Any]) -> None:
    """Put back what can be, so that one leak fails one test.

    Args:
        before: how it was.
    """
    for name in snapshot()["environment"]:
        del os.environ[name]
    os.environ.update(before["environment"])
    for name, handler in before["signal handlers"].items():
        signal.signal(signal.Signals[name], handler)
    for child in multiprocessing.active_children():
        if child.name not in before["processes"]:
            child.terminate()
    if not before["process group"] and snapshot()["process group"]:
        torch.distributed.destroy_process_group()
