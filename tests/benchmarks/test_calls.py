"""What a step costs when nobody listens, counted and not timed: exact on any machine.

Under HF's Trainer, accelerate also asks at each backward whether `lomo-optim` is installed: some 230 calls
where it is not, and more under pytest. They belong to the environment, and are left out.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback
from typing_extensions import override

from tests.benchmarks.cases import accuracy, rows, trainer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

FEW, MANY = 10, 60
BATCHES = 20
"""Batches of an epoch."""
STEPS = {"max_steps": MANY + 5}
RANDOM_STATES = {"getstate": 1, "get_state": 2}
"""Calls that copy a state → how many make one copy of all states; torch and NumPy share a name."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take back what HF's arguments of transformers 4 leave in it."""
    monkeypatch.setattr("accelerate.accelerator.is_lomo_available", lambda: False)
    with mock.patch.dict(os.environ):
        yield


class Counting:
    """Counts calls between two points."""

    def __init__(self) -> None:
        self.python = 0
        self.c: Counter[str] = Counter()

    def start(self) -> None:
        sys.setprofile(self._see)

    def stop(self) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            self.python += 1
        elif event == "c_call":
            self.c[arg.__name__] += 1


class Steady(TrainerCallback):
    """Counts from one update step to a later one."""

    def __init__(self, counting: Counting) -> None:
        self.counting = counting

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == FEW:
            self.counting.start()
        elif state.global_step == MANY:
            self.counting.stop()


class Syncs(TorchDispatchMode):
    """Counts the copies of a number from its device to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def per_batch(run: Callable[[Any], object]) -> float:
    """Python calls for one more batch of a pass."""
    found = []
    for batches in (FEW, FEW, MANY):
        counting, data = Counting(), rows(batches)
        counting.start()
        try:
            run(data)
        finally:
            counting.stop()
        found.append(counting.python)
    return (found[-1] - found[-2]) / (MANY - FEW)


def per_step(package: str, folder: Path, **options: Any) -> Counting:
    counting = Counting()
    size = options.get("gradient_accumulation_steps", 1)
    parts = {"options": STEPS | options, "callbacks": [Steady(counting)]}
    trainer = trainer_of(package, folder, rows(BATCHES * size), **parts)
    try:
        trainer.train()
    finally:
        counting.stop()
    return counting


class Watch(pl.Callback):
    """Hears one hook, as most callbacks do."""

    seen = 0

    @override
    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.seen += 1


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("accumulation", "most"), [(1, 0.9), (8, 1.0)])
def test_calls_of_an_update_step(accumulation: int, most: float, tmp_path: Path) -> None:
    size = {"gradient_accumulation_steps": accumulation}
    hf, ours = (per_step(package, tmp_path, **size) for package in ("transformers", "compat"))
    steps = MANY - FEW
    # HF's loop is one function, ours has parts; what both call is the same.
    assert ours.python <= most * hf.python, (ours.python / steps, hf.python / steps)
    assert ours.c.total() <= 0.9 * hf.c.total(), (ours.c.total() / steps, hf.c.total() / steps)
    for name, copies in RANDOM_STATES.items():
        assert ours.c[name] <= 1.1 * copies * steps, "once in a step, and once in an epoch"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_calls_of_a_step_that_a_callback_observes(tmp_path: Path) -> None:
    watch = Watch()
    connected = {"callbacks": [watch], "logger": pl.loggers.CSVLogger(tmp_path)}
    hf, ours = per_step("transformers", tmp_path), per_step("compat", tmp_path, lightning=connected)
    assert watch.seen == STEPS["max_steps"]
    assert ours.python <= 1.1 * hf.python, (ours.python, hf.python)


@pytest.mark.parametrize(
    ("pass_", "options", "most"),
    [
        ("evaluate", {}, 0.9),
        ("evaluate", {"compute_metrics": accuracy}, 0.6),
        ("predict", {"compute_metrics": accuracy}, 0.6),
    ],
    ids=["evaluation", "evaluation with a metric", "prediction"],
)
def test_calls_of_a_batch(pass_: str, options: dict[str, Any], most: float, tmp_path: Path) -> None:
    hf, ours = (
        per_batch(getattr(trainer_of(package, tmp_path, None, **options), pass_))
        for package in ("transformers", "compat")
    )
    assert ours <= most * hf, (ours, hf)


def test_copies_from_the_device(tmp_path: Path) -> None:
    counts = {}
    for package in ("transformers", "compat"):
        trainer = trainer_of(package, tmp_path, rows(BATCHES), options=STEPS, compute_metrics=accuracy)
        with Syncs() as training:
            trainer.train()
        with Syncs() as evaluation:
            trainer.evaluate(rows(FEW))
        counts[package] = (training.count, evaluation.count)
    assert counts["compat"][0] <= counts["transformers"][0], counts
    assert counts["compat"][1] <= counts["transformers"][1], counts
    assert counts["transformers"][0] >= MANY, "the filter of losses that are no numbers looks at each"
