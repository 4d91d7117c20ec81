"""A run that ends, and is saved, before its time is up."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import compat
from compat.callbacks import limits
from compat.callbacks.limits import as_timedelta
from compat.errors import ArgumentError
from compat.trainer import trainer as trainer_module
from tests.small import trainer

if TYPE_CHECKING:
    from pathlib import Path

STEP, EVALUATION, SAVE = 10.0, 100.0, 25.0
"""Seconds that they take by the clock of these tests."""


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (limits, trainer_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


class Slow(transformers.TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.now += STEP


def run(folder: Path, clock: Clock, seconds: float, **options: Any) -> tuple[compat.Trainer, float]:
    """Train for so many seconds; returns the trainer and how many were taken."""

    class Timed(compat.Trainer):
        def save_model(self, *args: Any, **kwargs: Any) -> None:
            super().save_model(*args, **kwargs)
            clock.now += SAVE

        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            clock.now += EVALUATION
            return super().evaluation_loop(*args, **kwargs)

    defaults = {"max_steps": 50, "save_strategy": "steps", "save_steps": 100}
    lightning = {"max_time": timedelta(seconds=seconds)}
    made = trainer(folder, Timed, callbacks=[Slow(clock)], lightning=lightning, **{**defaults, **options})
    before = clock.now
    made.train()
    return made, clock.now - before


@pytest.mark.parametrize(
    ("seconds", "options", "expected"),
    [
        # The longest step seen is reserved, and nothing for a save that nobody has seen.
        (55, {}, (5, 75)),
        (55, {"save_strategy": "no"}, (5, 50)),
        # Saves after steps 2 and 4: after the fifth step, 100 seconds in, another one and a save do not fit.
        (130, {"save_steps": 2}, (5, 125)),
        (136, {"save_steps": 2}, (6, 135)),
        # An evaluation is reserved where the next step has one: the twelfth.
        (460, {"save_steps": 5, "eval_strategy": "steps", "eval_steps": 4}, (11, 385)),
        (500, {"save_steps": 5, "eval_strategy": "steps", "eval_steps": 4}, (12, 495)),
    ],
)
def test_what_another_step_would_take_is_reserved(
    tmp_path: Path, clock: Clock, seconds: float, options: dict[str, Any], expected: tuple[int, float]
) -> None:
    made, found = run(tmp_path, clock, seconds, **options)
    assert (made.state.global_step, found) == expected
    saved = (tmp_path / f"checkpoint-{expected[0]}").exists()
    assert saved is (options.get("save_strategy") != "no")


def test_the_end_of_an_epoch_is_left_to_the_run_that_goes_on(tmp_path: Path, clock: Clock) -> None:
    options = {"max_steps": -1, "num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch"}
    # An epoch takes 60 seconds, its evaluation 100 and its save 25: the second evaluation does not fit.
    made, found = run(tmp_path, clock, 360, **options)
    assert (made.state.global_step, found) == (12, 270)
    assert [entry["step"] for entry in made.state.log_history if "eval_loss" in entry] == [6]
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint="auto")
    assert [entry["step"] for entry in resumed.state.log_history if "eval_loss" in entry] == [6, 12, 18]


def test_time_counts_from_the_start_of_train(tmp_path: Path, clock: Clock) -> None:
    class Late(compat.Trainer):
        def get_train_dataloader(self) -> Any:
            clock.now += 40
            return super().get_train_dataloader()

    options = {"max_steps": 50, "callbacks": [Slow(clock)], "lightning": {"max_time": {"seconds": 61}}}
    made = trainer(tmp_path, Late, **options)
    made.train()
    assert made.state.global_step == 2


def test_a_run_whose_time_is_up_ends_with_the_best_model_and_keeps_its_last_checkpoint(
    tmp_path: Path, clock: Clock
) -> None:
    scores = iter(range(100))
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "greater_is_better": False,
    }
    loaded: list[Any] = []

    class Loading(compat.Trainer):
        def _load_best_model(self) -> None:
            loaded.append(self.state.best_model_checkpoint)
            super()._load_best_model()

    lightning = {"max_time": timedelta(seconds=25)}
    made = trainer(
        tmp_path,
        Loading,
        callbacks=[Slow(clock)],
        compute_metrics=lambda _: {"score": next(scores)},
        lightning=lightning,
        **{"max_steps": 50, "save_strategy": "steps", **options},
    )
    made.train()
    assert made.state.global_step == 2
    assert loaded == [str(tmp_path / "checkpoint-1")]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("01:00", 60),
        ("02:00:00", 7200),
        ("1:00:00:00", 86400),
        ({"minutes": 2}, 120),
        (timedelta(hours=1), 3600),
    ],
)
def test_forms_of_a_time(limit: Any, seconds: int) -> None:
    assert as_timedelta(limit).total_seconds() == seconds


def test_no_time_at_all() -> None:
    with pytest.raises(ArgumentError, match="DD:HH:MM:SS"):
        as_timedelta("soon")
