"""Writes checkpoints where no file may grow beyond a size, as on a full disk, and prints what came of it.

Started as ``python full_disk.py FOLDER``. Each attempt is a fork of this process, which torch may abort.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compat.checkpoint.convert import convert
from compat.checkpoint.io import WholeCheckpointIO
from compat.checkpoint.manifest import MANIFEST
from compat.errors import CheckpointError
from tests.checkpoint.convert import harms

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = (0, 300, 1000, 1500, 2000, 2500, 3000, 5000, 50_000)
WRITTEN, REFUSED, LEFT, OTHERWISE = range(4)


def attempts(source: Path) -> dict[str, Callable[[Path], object]]:
    """What is written → what writes it to a path."""
    tree = {"state_dict": {"a": torch.arange(3000)}}
    forms = ("lightning", "hf", "sharded", "pretrained")
    writers: dict[str, Callable[[Path], object]] = {
        form: lambda path, form=form: convert(source, path, form)  # type: ignore[misc]
        for form in forms
    }
    return {**writers, "file of Lightning's": lambda path: WholeCheckpointIO().save_checkpoint(tree, path)}


def attempt(write: Callable[[Path], object], folder: Path, limit: int) -> str:
    """Write something into a folder where no file may be larger than `limit` bytes."""
    child = os.fork()
    if child == 0:
        code = OTHERWISE
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write(folder / "out.ckpt")
            code = WRITTEN
        except CheckpointError as error:
            is_told = f"{folder / 'out.ckpt'}`: not " in str(error)
            code = OTHERWISE if not is_told else LEFT if os.listdir(folder) else REFUSED
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "aborted"
    return ("written", "refused", "something left", "another error")[os.WEXITSTATUS(status)]


def main(folder: Path) -> None:
    """Try all of it, and print what came of each."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source = harms.hf(folder / "checkpoint-7", 3)
    for name in ("optimizer.pt", MANIFEST):
        (source / name).unlink()
    outcomes: dict[str, list[Any]] = {}
    for name, write in attempts(source).items():
        for limit in LIMITS:
            place = folder / f"{name} {limit}"
            place.mkdir()
            outcomes.setdefault(name, []).append(attempt(write, place, limit))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
