"""What else there is on an XLA device, in one process; prints it as JSON."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback

import compat
from compat.checkpoint.hosts import gathered
from compat.engine.any_device import accelerator_of
from compat.engine.strategies import STRATEGIES
from compat.engine.strategies.xla_strategy import xla
from compat.errors import ArgumentError
from tests.xla.cases import CASES, Case
from tests.xla.runs import Classifier, rows, trainer_of

if TYPE_CHECKING:
    from collections.abc import Callable


def error(call: Callable[[], object]) -> str:
    try:
        call()
    except ArgumentError as raised:
        return str(raised)
    return ""


def train_by_default(folder: Path) -> None:
    arguments = compat.TrainingArguments(str(folder), report_to="none", disable_tqdm=True)
    compat.Trainer(Classifier(), arguments, train_dataset=rows(CASES["plain"])).train()


def steps_of_several(folder: Path) -> tuple[str, int]:
    """Train with the strategy of several processes in this one, which is the only one there is."""
    STRATEGIES["single_xla"] = xla
    trainer = trainer_of("compat", folder, CASES["evaluated"])
    trainer.train()
    return type(trainer.lightning.strategy).__name__, trainer.state.global_step


class Watcher(Callback):
    """Counts micro-steps; cannot be pickled."""

    batches = 0

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def on_train_batch_end(self, *_: object) -> None:
        self.batches += 1


def observed(folder: Path) -> tuple[int, bool]:
    """Train under a Lightning callback; return its micro-steps, and whether a token was saved."""
    watcher = Watcher()
    options = {"lightning": {"callbacks": [watcher]}, "hub_token": "s3cret"}
    trainer_of("compat", folder, Case(options)).train()
    return watcher.batches, b"s3cret" in (folder / "checkpoint-3" / "training_args.bin").read_bytes()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = {
            "use_cpu": error(lambda: compat.TrainingArguments(place, use_cpu=True)),
            "optim": error(lambda: train_by_default(folder)),
            "gathered": gathered(["checkpoint-3", None]),
            "stats": accelerator_of("xla").get_device_stats("xla:0"),
            "observed": observed(folder / "observed"),
            "several": steps_of_several(folder / "several"),
        }
    print("RESULTS " + json.dumps(found))
