"""Computes the values of HF's TrainerState from any Lightning Trainer."""

from __future__ import annotations

import math
import os
import re
import sys
from typing import TYPE_CHECKING

import transformers
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from compat.upstream.schedule import update_steps

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch import nn

    from compat.upstream.values import Loader

FILE = re.compile(r"checkpoint-(\d+)\.ckpt")


def planned_steps(trainer: pl.Trainer) -> int:
    """Return the number of update steps of a `fit` run; `sys.maxsize` if unlimited."""
    limit: int = sys.maxsize if trainer.max_steps == -1 else trainer.max_steps
    batches: float = trainer.num_training_batches
    epochs: int | None = trainer.max_epochs
    if math.isinf(batches) or epochs is None or epochs == -1:
        return limit
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    schedulers = [each for each in callbacks if isinstance(each, GradientAccumulationScheduler)]
    if not schedulers:
        # A run limited by update steps has `sys.maxsize` epochs.
        per_epoch = int(update_steps(batches, [int(trainer.accumulate_grad_batches)]))
        return min(limit, per_epoch * max(epochs, 1))
    sizes = (schedulers[0].get_accumulate_grad_batches(epoch) for epoch in range(epochs))
    return min(limit, int(update_steps(batches, sizes)))


def planned_epochs(trainer: pl.Trainer, steps: int) -> int:
    """Return the number of epochs in `steps` update steps; the last one may be partial."""
    epochs: int | None = trainer.max_epochs
    if trainer.max_steps == -1 and epochs is not None and epochs != -1:
        return epochs
    batches: float = trainer.num_training_batches
    if math.isinf(batches) or not batches or steps == sys.maxsize:
        return sys.maxsize
    return math.ceil(steps / math.ceil(batches / int(trainer.accumulate_grad_batches)))


def epoch_at(trainer: pl.Trainer, batch_idx: int, max_steps: int) -> float:
    """Return the fractional epoch after a batch.

    Args:
        trainer: the Lightning Trainer.
        batch_idx: the index of the batch within its epoch.
        max_steps: the update steps of the run, used as the length of an epoch of unknown length.
    """
    batches = trainer.num_training_batches
    if math.isinf(batches):
        batches = max_steps * trainer.accumulate_grad_batches
    return trainer.current_epoch + (batch_idx + 1) / batches


def logged(trainer: pl.Trainer) -> dict[str, float]:
    """Return the numbers that the running loop has logged."""
    metrics = trainer._logger_connector.metrics["callback"]
    return {name: value.item() for name, value in metrics.items() if value.numel() == 1}


def model_of(module: pl.LightningModule) -> nn.Module:
    """Return the model for HF's callbacks: the one inside a module in HF's style, else the module."""
    inner = getattr(module, "model", None)
    has_arguments = isinstance(getattr(module, "args", None), transformers.TrainingArguments)
    return inner if has_arguments and inner is not None else module


def single(dataloaders: Loader) -> Loader:
    """Return the only dataloader of a list of one, or anything else unchanged."""
    return dataloaders[0] if isinstance(dataloaders, (list, tuple)) and len(dataloaders) == 1 else dataloaders


def outdated(folder: str, limit: int | None, best: str | None) -> list[str]:
    """Return the checkpoints in excess of `save_total_limit`, oldest first.

    Mirrors `transformers.Trainer._rotate_checkpoints`: the last one and the best one are always kept.

    Args:
        folder: the folder of the `checkpoint-STEP.ckpt` files.
        limit: how many to keep; None or 0 for all.
        best: the path of the best one.
    """
    if not limit or limit < 0:
        return []
    steps = {name: int(match[1]) for name in os.listdir(folder) if (match := FILE.fullmatch(name))}
    by_age = sorted(steps, key=lambda name: (os.path.getmtime(os.path.join(folder, name)), steps[name]))
    kept = {by_age[-1], os.path.basename(best or "")} & set(by_age)
    spare = [os.path.join(folder, name) for name in by_age if name not in kept]
    return spare[: max(0, len(by_age) - max(limit, len(kept)))]
