"""Who observes Lightning's loops, so that hooks that nobody hears are not called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy

if TYPE_CHECKING:
    import lightning.pytorch as pl

WITHIN_STEPS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""The hooks of callbacks that Lightning's closure and optimizer call within a micro-step."""


def is_observed(trainer: pl.Trainer, *, has_user_module: bool) -> bool:
    """Whether a Lightning callback, a user module or a profiler observes the loops; loggers don't.

    Args:
        trainer: Lightning's.
        has_user_module: whether the model is a LightningModule of the user's.
    """
    connected: Any = trainer
    return bool(connected.callbacks) or hears_all(trainer, has_user_module=has_user_module)


def hears_all(trainer: pl.Trainer, *, has_user_module: bool) -> bool:
    """Whether a user module, a profiler or a strategy takes part in every hook.

    Args:
        trainer: Lightning's.
        has_user_module: whether the model is a LightningModule of the user's.
    """
    has_hook = type(trainer.strategy).on_train_batch_start is not Strategy.on_train_batch_start
    return has_user_module or has_hook or is_profiled(trainer)


def is_profiled(trainer: pl.Trainer) -> bool:
    """Whether a profiler measures Lightning's loops."""
    return not isinstance(cast("Any", trainer).profiler, PassThroughProfiler)


def listens(trainer: pl.Trainer, *hooks: str) -> bool:
    """Whether a callback has one of these hooks, by its class or by itself.

    Args:
        trainer: Lightning's; its callbacks may change during a run.
        hooks: names of methods of `lightning.pytorch.Callback`.
    """
    connected: Any = trainer
    for callback in connected.callbacks:
        kind, own = type(callback), vars(callback)
        for hook in hooks:
            if getattr(kind, hook, None) is not getattr(Callback, hook) or hook in own:
                return True
    return False
