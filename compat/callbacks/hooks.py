"""A table of HF's callback events and the Lightning hooks in which they fire.

In `compat.Trainer`, `compat.engine.module.TrainerModule` fires them; in any other Lightning Trainer,
`compat.callbacks.to_lightning` does; in HF's own Trainer, they call hooks for `compat.callbacks.to_hf`.
`tests/callbacks/` records the sequences and compares them with this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """An event of `transformers.TrainerCallback`.

    Attributes:
        name: the event.
        hook: the LightningModule hook in which it fires in `compat.Trainer`; empty for events outside of
            Lightning's loops.
        when: what has happened by then.
        callback: the last hook of Lightning's callbacks that has begun when it fires in a plain Lightning
            Trainer; empty if there is no counterpart.
        elsewhere: what differs in a plain Lightning Trainer.
        hooks: the hooks of a Lightning callback that it calls in HF's Trainer, in order.
    """

    name: str
    hook: str
    when: str
    callback: str
    elsewhere: str = ""
    hooks: tuple[str, ...] = ()


EVENTS = (
    Event(
        "on_init_end",
        "",
        "the trainer has been constructed",
        "setup",
        elsewhere="a Lightning Trainer says nothing when it is constructed: the first run begins",
    ),
    Event(
        "on_train_begin",
        "on_train_start",
        "optimizer and scheduler exist, states are loaded",
        "on_train_start",
        hooks=("setup", "on_fit_start", "on_train_start"),
    ),
    Event(
        "on_epoch_begin",
        "on_train_epoch_start",
        "nothing of the epoch's data has been drawn",
        "on_train_epoch_start",
        elsewhere="Lightning may have drawn its first batch",
        hooks=("on_train_epoch_start",),
    ),
    Event(
        "on_step_begin",
        "on_train_batch_start",
        "the window has been fetched and its items are counted",
        "on_train_batch_start",
        elsewhere="only the window's first batch has been fetched",
        hooks=("on_train_batch_start",),
    ),
    Event(
        "on_substep_end",
        "on_train_batch_end",
        "a micro-step that does not end its window",
        "on_train_batch_end",
        hooks=("on_train_batch_end", "on_train_batch_start"),
    ),
    Event(
        "on_pre_optimizer_step",
        "configure_gradient_clipping",
        "gradients are clipped",
        "on_before_optimizer_step",
        elsewhere="gradients are not clipped yet",
        hooks=("on_before_optimizer_step",),
    ),
    Event(
        "on_optimizer_step",
        "optimizer_step",
        "parameters have changed, gradients are still there",
        "on_before_optimizer_step",
        elsewhere="a hook of the optimizer's own; not where a scaler leaves the step out",
    ),
    Event(
        "on_step_end",
        "on_train_batch_end",
        "scheduler stepped, gradients zeroed, global_step counted",
        "on_train_batch_end",
        elsewhere="Lightning zeroes gradients in the next step",
        hooks=("on_train_batch_end",),
    ),
    Event(
        "on_log",
        "on_train_batch_end",
        "after on_step_end, where control asks for it",
        "on_train_batch_end",
    ),
    Event(
        "on_prediction_step",
        "validation_step",
        "outputs of the batch are gathered",
        "on_validation_batch_end",
        elsewhere="outputs are this process's own; fires for test and predict, too",
        hooks=("on_validation_start", "on_validation_epoch_start", "on_validation_batch_end"),
    ),
    Event(
        "on_evaluate",
        "on_train_batch_end",
        "metrics are logged",
        "on_validation_end",
        hooks=("on_validation_epoch_end", "on_validation_end"),
    ),
    Event(
        "on_predict",
        "",
        "predictions and metrics are there",
        "on_test_end",
        elsewhere="after `test` with its metrics, after `predict` with none",
        hooks=("on_predict_epoch_end", "on_predict_end"),
    ),
    Event(
        "on_save",
        "on_train_batch_end",
        "the checkpoint is written, older ones are rotated",
        "on_save_checkpoint",
        elsewhere="for checkpoints that control has asked for",
    ),
    Event(
        "on_epoch_end",
        "on_train_epoch_end",
        "before the epoch's log, evaluation and checkpoint",
        "on_train_epoch_end",
        hooks=("on_train_epoch_end",),
    ),
    Event(
        "on_train_end",
        "on_train_end",
        "the best model is loaded, metrics are logged",
        "on_train_end",
        hooks=("on_train_end", "on_fit_end", "teardown"),
    ),
    Event(
        "on_push_begin",
        "on_train_batch_end",
        "a checkpoint is about to be uploaded",
        "",
        elsewhere="never: nothing is uploaded",
    ),
)
"""The events, in the order of a run."""
