"""Processes that use torch_xla: each has one client, so trainers that are compared have a process each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from transformers.utils import is_torch_xla_available

ROOT = Path(__file__).parents[2]
USES_XLA = bool(is_torch_xla_available())


def started(*words: str, **variables: str) -> subprocess.Popen[str]:
    """Start a module or a piece of code on XLA devices that are made of the CPU.

    Args:
        words: the module's name and its arguments.
        variables: set in its environment.
    """
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PJRT_DEVICE": "CPU"} | variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(process: subprocess.Popen[str]) -> str:
    """Wait for a process, and return what it printed behind `RESULTS`."""
    out, errors = process.communicate()
    lines = [line for line in out.splitlines() if line.startswith("RESULTS ")]
    assert lines, errors[-3000:]
    return lines[0].removeprefix("RESULTS ")
