from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from compat.engine.accumulation import rescheduled, scheduler_among
from compat.errors import ArgumentError
from compat.upstream.schedule import Schedule

SCHEDULE = Schedule(
    num_train_epochs=3,
    num_update_steps_per_epoch=7,
    num_examples=28,
    num_train_samples=84,
    total_train_batch_size=4,
    steps_in_epoch=7,
    max_steps=21,
)


@pytest.mark.parametrize(
    ("args", "epochs", "steps"),
    [
        ({"num_train_epochs": 3, "max_steps": -1}, 3, 7 + 4 + 3),
        ({"num_train_epochs": 1.5, "max_steps": -1}, 3, 7 + 2),
        ({"num_train_epochs": 3, "max_steps": 12}, 3, 21),
        ({"num_train_epochs": 3, "max_steps": 11}, 2, 21),
    ],
)
def test_update_steps_are_counted_epoch_by_epoch(args: dict[str, Any], epochs: int, steps: int) -> None:
    scheduler = GradientAccumulationScheduler({1: 2, 2: 3})
    found = rescheduled(SCHEDULE, SimpleNamespace(**args), scheduler)
    assert (found.num_train_epochs, found.max_steps) == (epochs, steps)


def test_the_scheduler_is_found_and_rules_alone() -> None:
    scheduler, one, two = (
        GradientAccumulationScheduler({0: 2}),
        SimpleNamespace(gradient_accumulation_steps=1),
        SimpleNamespace(gradient_accumulation_steps=2),
    )
    assert scheduler_among([Timer(), scheduler], one) is scheduler
    assert scheduler_among([Timer()], two) is None
    with pytest.raises(ArgumentError, match="`gradient_accumulation_steps=2`"):
        scheduler_among([scheduler], two)
