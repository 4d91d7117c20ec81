"""HF's callbacks in any Lightning Trainer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
import transformers
from lightning.pytorch.trainer.states import TrainerFn
from transformers.trainer_utils import SaveStrategy, speed_metrics
from typing_extensions import override

from compat.callbacks.control import ControlActions
from compat.callbacks.trainer_state import epoch_at, logged, single
from compat.errors import ArgumentError
from compat.translate.metric_names import named_as
from compat.upstream.seams.common import determine_best_metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import lightning.pytorch as pl
    from torch.optim import Optimizer
    from transformers import TrainerCallback

    from compat.upstream.values import Batch, Output, ProcessingClass


def to_lightning(
    callbacks: Any | Sequence[Any],
    args: transformers.TrainingArguments | Mapping[str, Any] | None = None,
    processing_class: ProcessingClass = None,
) -> HFCallbacks:
    """Convert HF's callbacks to a Lightning callback, for any module in any `lightning.pytorch.Trainer`.

    Args:
        callbacks: a `transformers.TrainerCallback`, its class, or a list of them, in the order in which they
            are called. With `DefaultFlowCallback` among them, HF's `logging_steps`, `eval_steps` and
            `save_steps` decide when to log, evaluate and save; without it, Lightning's own flags do.
        args: HF's arguments, or a dict of some of them, which does not affect the process; None for those of
            a `compat.HFModule`, or HF's defaults.
        processing_class: passed to callbacks as `processing_class` and `tokenizer`.

    Returns:
        A callback for `lightning.pytorch.Trainer(callbacks=[…])`.

    Raises:
        ArgumentError: an object is not an HF callback, or `args` are not HF's arguments.
    """
    listed = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    return HFCallbacks([_instance(callback) for callback in listed], args, processing_class)


def _instance(callback: TrainerCallback | type[TrainerCallback]) -> transformers.TrainerCallback:
    if isinstance(callback, type) and issubclass(callback, transformers.TrainerCallback):
        return callback()
    if isinstance(callback, transformers.TrainerCallback):
        return callback
    name = callback.__name__ if isinstance(callback, type) else type(callback).__name__
    msg = (
        f"`callbacks=[{name}]`: no `transformers.TrainerCallback`. A callback of Lightning's goes into "
        "`lightning.pytorch.Trainer(callbacks=[…])` as it is."
    )
    raise ArgumentError(msg)


class HFCallbacks(ControlActions):
    """HF's callbacks as one Lightning callback; created by `to_lightning`."""

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._know_run(trainer, pl_module)
        self._check_evaluation(trainer)
        self._take_part(trainer)
        self._start_time = time.time()
        self._fire("on_train_begin")
        self._agree(trainer)
        if self.has_flow and self.args.eval_on_start:
            self._validate(trainer)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_open = False
        self._fire("on_epoch_begin")

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._is_after_batch, self._has_trained = False, True
        if not self._is_open:
            self._is_open = True
            self._fire("on_step_begin")

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._fire("on_pre_optimizer_step")

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Output,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        # An HFModule's loss is already divided by its window as in HF, so Lightning's division is undone.
        loss = getattr(pl_module, "micro_loss", loss)
        if isinstance(loss, torch.Tensor):
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if trainer.global_step == self._seen:
            self._fire("on_substep_end")
            self._agree(trainer)
            return
        self._seen = trainer.global_step
        self._is_open = False
        self.state.global_step += 1
        self.state.epoch = epoch_at(trainer, batch_idx, self.state.max_steps)
        self._fire("on_step_end")
        self._agree(trainer)
        self._log_training(trainer)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fire("on_epoch_end")
        self._agree(trainer)
        self._log_training(trainer)
        if self.control.should_evaluate and self._evaluated_at == self.state.global_step:
            # Lightning itself has just done this.
            self.control.should_evaluate = False
        if self.control.should_evaluate:
            self._validate(trainer)
        self._is_open = False
        self._conclude(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = self.state
        self._take_loss(trainer)
        steps = state.global_step - self._first
        logs = speed_metrics("train", self._start_time, num_steps=steps)
        self._log({**logs, "train_loss": self._total_loss / max(steps, 0.001)})
        self._load_best(trainer)
        self._fire("on_train_end")
        self._undo.close()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.handler.eval_dataloader = single(trainer.val_dataloaders)

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.handler.eval_dataloader = single(trainer.test_dataloaders)

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.handler.eval_dataloader = single(trainer.predict_dataloaders)

    @override
    def on_validation_batch_end(self, trainer: pl.Trainer, *args: object, **kwargs: object) -> None:
        if not trainer.sanity_checking:
            self._fire("on_prediction_step")

    @override
    def on_test_batch_end(self, *args: object, **kwargs: object) -> None:
        self._fire("on_prediction_step")

    @override
    def on_predict_batch_end(self, *args: object, **kwargs: object) -> None:
        self._fire("on_prediction_step")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        own = logged(trainer)
        metrics = named_as("eval", own)
        self._log(dict(metrics))
        # A name that the module logs is also a metric name: HF adds its prefix to any name.
        named = {f"eval_{name}": value for name, value in own.items() if not name.startswith("eval_")}
        found = {**named, **own, **metrics}
        self._fire("on_evaluate", metrics=found)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if self.state.global_step > self._first or not self._is_nested:
            is_best = determine_best_metric(self, found)
            if self.args.save_strategy == SaveStrategy.BEST:
                self.control.should_save = is_best
        self._agree(trainer)
        if not self._is_nested:
            self._conclude(trainer)

    @override
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = logged(trainer)
        self._fire("on_predict", metrics={**own, **named_as("test", own)})

    @override
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fire("on_predict", metrics={})
