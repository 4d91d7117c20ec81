"""The LightningModule through which Lightning drives an HF Trainer."""

from __future__ import annotations

import math
import time
import weakref
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer import call
from typing_extensions import override

from compat.arguments.machine import XLA
from compat.engine.observers import listens
from compat.engine.optimizer import take_in_new_groups
from compat.engine.resumption import count_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch.core.optimizer import LightningOptimizer
    from torch import nn
    from torch.optim import Optimizer

    from compat.engine.evaluation import Evaluation
    from compat.engine.host import TrainerHost
    from compat.engine.session import Session
    from compat.upstream.values import Batch, Output

PLAIN_TYPES = (str, type(None))
"""Attributes that Lightning sets on the module around each hook; they need no registration by torch."""


MEANT = {"backbone": "base_model"}
"""Attribute that Lightning's callbacks read → the attribute of HF's models."""


SCHEDULER_KEYS = ("scheduler", "name", "interval", "frequency", "reduce_on_plateau", "monitor", "strict")
"""Lightning's configuration of HF's scheduler."""


class TrainerModule(pl.LightningModule):
    """Maps Lightning's hooks onto the methods and events of an HF Trainer.

    The methods are HF's own or a subclass's (`training_step`, `prediction_step`, …); the events are those of
    `compat.callbacks.hooks.EVENTS`, in HF's order. The module holds no state of the run; the session holds
    it.

    Args:
        hf: the HF Trainer.
        model: its model.
    """

    has_user_module = False
    """Whether the model is a LightningModule of the user's."""

    def __init__(self, hf: TrainerHost, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # A dropped trainer must be freed at once, with the workers of its dataloaders: no cycle may hold it.
        self._hf = weakref.ref(hf)
        self.session: Session | None = None
        self.evaluation: Evaluation | None = None

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model that callbacks expect on a LightningModule, such as `backbone`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            name = MEANT.get(name, name) if not hasattr(model, name) else name
            if model is None or name.startswith("_") or not hasattr(model, name):
                raise
            return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, PLAIN_TYPES):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Output:
        return self.model(*args, **kwargs)

    @property
    def hf(self) -> TrainerHost:
        """The HF Trainer."""
        return self._hf()  # type: ignore[return-value]

    @property
    def run(self) -> Session:
        """The run of `fit` in progress."""
        assert self.session is not None, "outside of fit"
        return self.session

    @property
    def flops_per_batch(self) -> int:
        """Floating-point operations of a step, as HF counts them; for Lightning's ThroughputMonitor.

        HF counts forward and backward; an evaluation has no more than the forward, which is a third.
        """
        if self.evaluation is not None:
            return int(self.hf.floating_point_ops(self.evaluation.inputs)) // 3
        return int(self.hf.floating_point_ops(self.run.micro.inputs))

    # HF's loaders and `_prepare_inputs` have already placed the batch.

    @override
    def _on_before_batch_transfer(self, batch: Batch, dataloader_idx: int = 0) -> Batch:
        return batch

    @override
    def _apply_batch_transfer_handler(
        self, batch: Batch, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Batch:
        return batch

    def named(self, batch: Batch) -> Batch:
        """Return a batch for HF code that looks up tensors by name."""
        return batch

    # Training.

    @override
    def configure_optimizers(self) -> Any:
        """Have HF build optimizer and scheduler, and load their states when resuming."""
        run = self.run
        hf, checkpoint = run.hf, run.resume_from_checkpoint
        prepared = hf._set_up_training(run.schedule, run.dataloader, checkpoint, run.trial)
        run.begin(prepared, hf._checkpoint_reader.load_position(checkpoint, run))
        self.trainer.fit_loop.fast_forward()  # type: ignore[attr-defined]
        optimizer, scheduler, own = hf.optimizer, hf.lr_scheduler, hf._user_module.config
        if own is not None and own.scheduler.optimizer == optimizer:
            shown = {name: getattr(own, name) for name in SCHEDULER_KEYS}
            return {"optimizer": optimizer, "lr_scheduler": shown}
        is_known = isinstance(
            scheduler,
            (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau),
        )
        if not is_known or getattr(scheduler, "optimizer", None) != optimizer:
            # In a dict, because Lightning recognizes DeepSpeed's optimizer only there.
            return {"optimizer": optimizer}
        # Lightning's callbacks need to see the scheduler; `on_train_batch_end` steps it.
        monitor = run.hf.args.metric_for_best_model or "loss"
        name = f"lr-{type(getattr(optimizer, 'optimizer', optimizer)).__name__}"
        shown = {"scheduler": scheduler, "interval": "step", "monitor": monitor, "name": name}
        return {"optimizer": optimizer, "lr_scheduler": shown}

    @override
    def on_train_start(self) -> None:
        run = self.run
        hf = run.hf
        run.start_time = time.time()
        hf._start_bookkeeping(torch.tensor(0.0, device=hf.args.device))
        hf._fit.announce(run)
        run.model.zero_grad()  # type: ignore[union-attr]
        run.fire("on_train_begin")
        if hf.args.eval_on_start:
            hf._evaluate(run.trial, run.ignore_keys, skip_scheduler=True)

    def look_at(self, batch: Batch) -> None:
        """Run a forward pass in train mode, to update the statistics that the model keeps of its data."""
        run = self.run
        run.model.train()  # type: ignore[union-attr]
        with torch.no_grad(), run.hf.compute_loss_context_manager():
            run.hf.compute_loss(run.model, run.hf._prepare_inputs(batch))

    @override
    def on_train_epoch_start(self) -> None:
        run = self.run
        if run.is_over:
            return
        hf = run.hf
        run.epoch = self.trainer.current_epoch
        if self.trainer.accumulate_grad_batches != hf.args.gradient_accumulation_steps:
            # GradientAccumulationScheduler has set it; HF reads it from its argument.
            hf.args.gradient_accumulation_steps = self.trainer.accumulate_grad_batches
        if run.is_observed:
            take_in_new_groups(hf.optimizer, hf.lr_scheduler)
        run.behind = run.steps_trained if run.resumes_epoch else 0
        run.seen_batch = run.counts_skipped and run.behind > 0
        run.epoch_is_over = False
        if hf.begins_epochs_afresh:
            run.grad_norm = run.learning_rate = None
        hf._forget_past()
        if hf.seeds_epoch_before_callbacks:
            hf._seed_epoch(run.dataloader, run.epoch)
        run.fire("on_epoch_begin")
        if run.resumes_epoch:
            # The restored control may request the same save that the run resumes from. HF's next step resets
            # that; here no save may begin before the end of a window or of the epoch.
            hf.control.should_save = hf.control.should_evaluate = hf.control.should_log = False
        if run.resumes_epoch and (run.steps_trained == 0 or run.nothing_left):
            count_pass(run.dataloader, run.position)
            run.load_random_states()

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        run = self.run
        micro = run.micro
        run.seen_batch = True
        run.hf.accelerator.gradient_state._set_sync_gradients(micro.syncs)
        run.hf._count_tokens_before_step(self.named(batch))
        if micro.opens:
            run.fire("on_step_begin")

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """HF's training step.

        Args:
            batch: the batch as HF's collator returned it.
            batch_idx: its index in the epoch, in micro-steps.

        Returns:
            The loss of the micro-batch, divided by its window as HF divides it: with its graph if Lightning
            runs the backward, detached if the backward has already run.
        """
        run = self.run
        hf = run.hf
        micro, surprises = run.micro, run.surprises
        num_items = micro.num_items if surprises is None else surprises.watch(micro.num_items)
        with hf._fit.sync_context(run):
            loss: torch.Tensor = hf.training_step(run.model, batch, num_items)
        if surprises is not None:
            run.surprises = None
            surprises.tell(batch, num_items, hf.current_gradient_accumulation_steps)
        self.add_up(hf, loss)
        hf.current_flos += float(hf.floating_point_ops(batch))
        hf._count_tokens_after_step(self.named(batch))
        return loss

    @override
    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        self.hf.accelerator.run_backward(loss, *args, **kwargs)

    def add_up(self, hf: TrainerHost, loss: torch.Tensor) -> None:
        """Add the loss of a micro-batch to those since HF's last log."""
        total = hf._tr_loss
        # HF filters no losses on XLA, where each look at a number executes a program.
        filters = hf.args.logging_nan_inf_filter and loss.device.type != XLA
        if filters and not math.isfinite(loss.item()):
            # A NaN or infinite loss is replaced by the average of the losses since the last log.
            loss = total / (1 + hf.state.global_step - hf._globalstep_last_logged)
        elif total.device != loss.device:
            msg = (
                f"Calculated loss must be on the original device: {total.device} "
                f"but device in use is {loss.device}"
            )
            raise ValueError(msg)
        if hf.adds_losses_in_place:
            total += loss
        else:
            hf._tr_loss = total + loss

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer | LightningOptimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip and measure as HF does; Lightning's hook runs before clipping, HF's event after it."""
        run = self.run
        norm = run.hf._clip_and_measure_gradients(run.model)
        if norm is not None:
            run.grad_norm = norm
        run.fire("on_pre_optimizer_step")

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        optimizer.step(closure=optimizer_closure)
        self.run.fire("on_optimizer_step")

    def count_update_step(self) -> None:
        """Update the scheduler and the counters after an optimizer step, before the hooks that follow it."""
        run = self.run
        hf = run.hf
        is_foreign = run.is_observed and self._has_foreign_scheduler()
        run.learning_rate = hf.optimizer.param_groups[0]["lr"] if is_foreign else hf._get_learning_rate()
        was_skipped = hf.accelerator.optimizer_step_was_skipped
        if not (was_skipped or is_foreign or hf._fit.scheduler_waits_for_metrics()):
            hf.lr_scheduler.step()
        self._count_batch()

    def _count_batch(self) -> None:
        run = self.run
        hf = run.hf
        hf.state.global_step += 1
        run.behind = run.micro.step + 1
        hf.state.epoch = run.epoch + run.behind / run.schedule.steps_in_epoch

    def _has_foreign_scheduler(self) -> bool:
        return bool(self.trainer.fit_loop.epoch_loop.has_foreign_scheduler)  # type: ignore[attr-defined]

    @override
    def on_train_batch_end(self, outputs: Output, batch: Batch, batch_idx: int) -> None:
        run = self.run
        if not run.micro.syncs:
            run.fire("on_substep_end")
            return
        self.zero_gradients()
        run.fire("on_step_end")
        self.log_save_evaluate(run)
        run.hf._checkpoint_writer.check_writing()

    def zero_gradients(self) -> None:
        """Zero the gradients after an update step, with Lightning's hook before it."""
        run = self.run
        if run.hears_all or listens(self.trainer, "on_before_zero_grad"):
            call._call_callback_hooks(self.trainer, "on_before_zero_grad", self.trainer.optimizers[0])
            call._call_lightning_module_hook(self.trainer, "on_before_zero_grad", self.trainer.optimizers[0])
        run.model.zero_grad()  # type: ignore[union-attr]

    def log_save_evaluate(self, run: Session) -> None:
        """Log, evaluate and save as HF's control requests."""
        run.hf._maybe_log_save_evaluate(
            run.hf._tr_loss,
            run.grad_norm,
            run.model,
            run.trial,
            run.epoch,
            run.ignore_keys,
            run.start_time,
            learning_rate=run.learning_rate,
        )

    @override
    def on_train_epoch_end(self) -> None:
        run = self.run
        if run.is_over:
            return
        if not run.seen_batch:
            run.hf._fit.warn_of_empty_epoch(run)
        if run.has_ended:
            run.hf.control.should_training_stop = True
        run.hf.accelerator.mark_step()
        run.fire("on_epoch_end")
        run.epoch_is_over = True
        self.log_save_evaluate(run)

    @override
    def on_train_end(self) -> None:
        run = self.run
        run.hf._checkpoint_writer.finish_saving()
        run.output = run.hf._finalize_training(run.trial, run.schedule.num_train_samples, run.start_time)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the contents of HF's checkpoint other than weights and optimizer to a Lightning checkpoint.

        Args:
            checkpoint: gets `hf_files`: path → its content, a tensor of bytes.
        """
        checkpoint["hf_files"] = self.hf._checkpoint_writer.files_of_run()
        if not checkpoint.get("lr_schedulers") and self.hf.lr_scheduler is not None:
            # A scheduler that Lightning does not accept was not passed to it.
            checkpoint["lr_schedulers"] = [self.hf.lr_scheduler.state_dict()]

    # Evaluation and prediction. HF leaves the model in eval mode, and puts it back into train mode at each
    # step.

    def _set_eval_mode(self) -> None:
        assert self.evaluation is not None
        self.evaluation.set_eval_mode()

    @override
    def on_validation_model_eval(self) -> None:
        self._set_eval_mode()

    @override
    def on_predict_model_eval(self) -> None:
        self._set_eval_mode()

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self.evaluation is not None
        self.evaluation.step(batch)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> Output:
        """HF's prediction step.

        Returns:
            Loss, logits and labels of the batch, for Lightning's prediction writers.
        """
        assert self.evaluation is not None
        return self.evaluation.step(batch)
