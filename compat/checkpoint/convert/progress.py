"""The progress of a training, as the state of Lightning's loops."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.checkpoint.convert import lazy
from compat.checkpoint.convert.common import STATE
from compat.checkpoint.layout import ARGUMENTS
from compat.checkpoint.safe_unpickler import read_arguments
from compat.errors import CompatError

if TYPE_CHECKING:
    from compat.checkpoint.convert.common import Checkpoint

_NEARLY = 1e-6
"""Tolerance for HF's fractional count of epochs, which is rounded."""


_IDLE = ("validate_loop", "test_loop", "predict_loop")


@dataclass(frozen=True)
class Progress:
    """How far a training has come.

    Attributes:
        steps: optimizer steps.
        epoch: index of the epoch of the last batch.
        batches: batches in all epochs.
        ready: batches in that epoch.
        is_over: whether that epoch has no more of them.
    """

    steps: int = 0
    epoch: int = 0
    batches: int = 0
    ready: int = 0
    is_over: bool = False

    def loops(self, manual: int = 0) -> dict[str, Any]:
        """Return the states of Lightning's loops when a callback saves at the end of a batch.

        Args:
            manual: the optimizer steps of a module that optimizes manually.
        """
        if not self.steps:
            return _loops(_counts(0, 0), _counts(0, 0), _counts(0, 0), is_over=False, steps=0)
        return _loops(
            manual=manual,
            epochs=_counts(self.epoch + 1, self.epoch, processed=self.epoch),
            total=_counts(self.batches, self.batches - 1),
            current=_counts(self.ready, self.ready - 1),
            is_over=self.is_over,
            steps=self.steps,
        )


def _loops(
    epochs: dict[str, int],
    total: dict[str, int],
    current: dict[str, int],
    *,
    is_over: bool,
    steps: int,
    manual: int = 0,
) -> dict[str, Any]:
    manually = {"ready": manual, "completed": manual}
    none = {"total": _counts(0, 0), "current": _counts(0, 0), "is_last_batch": False}
    stepped = {"ready": steps, "completed": steps}
    zeroed = {**stepped, "started": steps}
    optimizer = {
        "step": {"total": stepped, "current": stepped},
        "zero_grad": {"total": zeroed, "current": zeroed},
    }
    epoch_loop = {
        # Lightning counts the last step when it resumes.
        "state_dict": {"_batches_that_stepped": max(steps - 1, 0)},
        "batch_progress": {"total": total, "current": current, "is_last_batch": is_over},
        "scheduler_progress": {"total": stepped, "current": stepped},
        "automatic_optimization.state_dict": {},
        "automatic_optimization.optim_progress": {"optimizer": optimizer},
        "manual_optimization.state_dict": {},
        "manual_optimization.optim_step_progress": {"total": manually, "current": manually},
        "val_loop.state_dict": {},
        "val_loop.batch_progress": none,
    }
    return {
        "fit_loop": {
            "state_dict": {},
            "epoch_progress": {"total": epochs, "current": epochs},
            **{f"epoch_loop.{key}": value for key, value in epoch_loop.items()},
        },
        **{name: {"state_dict": {}, "batch_progress": none} for name in _IDLE},
    }


def _counts(ready: int, completed: int, processed: int | None = None) -> dict[str, int]:
    """Return a Lightning counter: ready steps count as started, and as processed by default."""
    processed = ready if processed is None else processed
    return {"ready": ready, "started": ready, "processed": processed, "completed": completed}


def progress(checkpoint: Checkpoint) -> Progress:
    """Read the progress from `trainer_state.json`; without one, nothing has been trained."""
    state = checkpoint.told(STATE)
    steps, epoch = state.get("global_step") or 0, state.get("epoch") or 0.0
    if not steps or not epoch:
        return Progress(steps=steps)
    batches = steps * _accumulated(checkpoint)
    per_epoch = max(1, round(batches / epoch))
    over = math.floor(epoch + _NEARLY)
    ready = round((epoch - over) * per_epoch)
    if ready:
        return Progress(steps, over, over * per_epoch + ready, ready)
    return Progress(steps, over - 1, over * per_epoch, per_epoch, is_over=True)


def _accumulated(checkpoint: Checkpoint) -> int:
    """Return the batches per optimizer step, from the arguments, which are read without running code."""
    content = checkpoint.files.get(ARGUMENTS)
    if content is None:
        return 1
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(bytes(lazy.filled(content).numpy()))
        file.flush()
        try:
            arguments = read_arguments(file.name)
        except CompatError:
            return 1
    accumulated = arguments.get("gradient_accumulation_steps")
    return accumulated if type(accumulated) is int and accumulated > 0 else 1
