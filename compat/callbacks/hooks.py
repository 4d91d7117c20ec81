"""Where each event of HF's callbacks fires among Lightning's hooks, as data.

`compat.engine.module.TrainerModule` fires them; `tests/callbacks/test_hooks.py` records both sequences and
holds them against this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """An event of `transformers.TrainerCallback`.

    Attributes:
        name: the event.
        hook: the LightningModule hook in which it fires; empty for events outside of Lightning's loops.
        when: what has happened by then.
    """

    name: str
    hook: str
    when: str


EVENTS = (
    Event("on_init_end", "", "the trainer has been constructed"),
    Event("on_train_begin", "on_train_start", "optimizer and scheduler exist, states are loaded"),
    Event("on_epoch_begin", "on_train_epoch_start", "nothing of the epoch's data has been drawn"),
    Event(
        "on_step_begin",
        "on_train_batch_start",
        "the window has been fetched and its items are counted",
    ),
    Event("on_substep_end", "on_train_batch_end", "a micro-step that does not end its window"),
    Event("on_pre_optimizer_step", "configure_gradient_clipping", "gradients are clipped"),
    Event("on_optimizer_step", "optimizer_step", "parameters have changed, gradients are still there"),
    Event(
        "on_step_end",
        "on_train_batch_end",
        "scheduler stepped, gradients zeroed, global_step counted",
    ),
    Event("on_log", "on_train_batch_end", "after on_step_end, where control asks for it"),
    Event("on_prediction_step", "validation_step", "outputs of the batch are gathered"),
    Event("on_evaluate", "on_train_batch_end", "metrics are logged"),
    Event("on_predict", "", "predictions and metrics are there"),
    Event("on_save", "on_train_batch_end", "the checkpoint is written, older ones are rotated"),
    Event("on_epoch_end", "on_train_epoch_end", "before the epoch's log, evaluation and checkpoint"),
    Event("on_train_end", "on_train_end", "the best model is loaded, metrics are logged"),
    Event("on_push_begin", "on_train_batch_end", "a checkpoint is about to be uploaded"),
)
"""In the order of a run."""
