"""Kills a training run at random moments, restarts it each time, and prints what came of it.

Started as ``python killed.py FOLDER KILLS SEED FLAGS``, where FLAGS is JSON: flags of `lightning=`. A run is
a fork of this process, so that it begins at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from compat.checkpoint.selection import last_whole
from tests.small import Regression, rows, trainer

OPTIONS = {
    "max_steps": 60,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 3,
}


EXITED = os.WEXITED | os.WNOHANG | os.WNOWAIT

LIFE = 0.08
"""Seconds that a run may live once it has begun to save, at most: a few steps."""


def wait_for_change(folder: Path, child: int) -> None:
    """Wait until a run has begun to write a checkpoint, beyond clearing away what another has left."""
    before = entries(folder)
    while entries(folder) <= before and os.waitid(os.P_PID, child, EXITED) is None:
        time.sleep(0.001)


def entries(folder: Path) -> set[tuple[int, int]]:
    found = set()
    for path in folder.iterdir() if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):
            found.add((path.stat().st_ino, path.stat().st_ctime_ns))
    return found


def run(folder: Path, flags: dict[str, object]) -> None:
    torch.manual_seed(0)
    trainer(folder, model=Regression(), train_dataset=rows(14), lightning=flags, **OPTIONS).train(
        resume_from_checkpoint="auto"
    )


def forked(folder: Path, flags: dict[str, object]) -> int:
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            run(folder, flags)
        except BaseException:  # noqa: BLE001 (the status says it)
            os._exit(1)
        os._exit(0)
    return child


def main(folder: Path, kills: int, seed: int, flags: dict[str, object]) -> None:
    """Train undisturbed, then under kills, and print both."""
    torch.set_num_threads(1)
    # In this process, which so has imported all that the others need.
    run(folder / "whole", flags)
    moments = random.Random(seed)  # noqa: S311
    killed, partial, steps = 0, 0, set()
    while True:
        child = forked(folder / "killed", flags)
        if killed < kills:
            wait_for_change(folder / "killed", child)
            time.sleep(moments.uniform(0.0, LIFE))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
        killed += 1
        partial += any((folder / "killed").glob("_*checkpoint-*"))
        steps.add(last_whole(folder / "killed"))
    print(json.dumps({"status": status, "killed": killed, "partial": partial, "resumed": len(steps)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
