"""Accumulation windows whose size changes from epoch to epoch."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler

from compat.errors import ArgumentError
from compat.upstream.schedule import update_steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import TrainingArguments

    from compat.upstream.schedule import Schedule


def scheduler_among(
    callbacks: Iterable[Any], args: TrainingArguments
) -> GradientAccumulationScheduler | None:
    """Return Lightning's callback that sets the size of windows, if there is one.

    Args:
        callbacks: Lightning's callbacks of a run.
        args: HF's arguments.

    Raises:
        ArgumentError: the arguments set a size as well, or the data has no length.
    """
    found = next((one for one in callbacks if isinstance(one, GradientAccumulationScheduler)), None)
    if found is not None and args.gradient_accumulation_steps != 1:
        msg = (
            f"`gradient_accumulation_steps={args.gradient_accumulation_steps}`: "
            "GradientAccumulationScheduler sets it epoch by epoch. Leave out one of the two."
        )
        raise ArgumentError(msg)
    return found


def rescheduled(
    schedule: Schedule, args: TrainingArguments, scheduler: GradientAccumulationScheduler
) -> Schedule:
    """Compute the schedule of a run whose epochs have windows of different sizes.

    Args:
        schedule: HF's schedule, computed with windows of one micro-step.
        args: HF's arguments.
        scheduler: the callback that holds the size for each epoch.
    """

    def updates(*epochs: int) -> int:
        return int(update_steps(schedule.steps_in_epoch, map(scheduler.get_accumulate_grad_batches, epochs)))

    if args.max_steps > 0:
        made = epochs = 0
        while made < args.max_steps:
            made += updates(epochs)
            epochs += 1
        return dataclasses.replace(schedule, num_train_epochs=epochs)
    whole = int(args.num_train_epochs)
    rest = math.ceil((args.num_train_epochs - whole) * updates(whole))
    return dataclasses.replace(schedule, max_steps=updates(*range(whole)) + rest)
