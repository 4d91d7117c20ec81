"""Lightning's callbacks that search for the value of an argument before training."""

from __future__ import annotations

from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

FINDERS = {LearningRateFinder: "learning_rate", BatchSizeFinder: "per_device_train_batch_size"}
"""Callback → the argument that it sets."""


def is_finder(callback: object) -> bool:
    """Whether a callback is a finder."""
    return isinstance(callback, tuple(FINDERS))
