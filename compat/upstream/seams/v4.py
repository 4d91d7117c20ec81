"""transformers up to 5.2: the steps of HF's one training function, as methods in the order of the release."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from accelerate.utils import extract_model_from_parallel
from torch.distributed.tensor.experimental import implicit_replication
from transformers import trainer as hf_trainer
from transformers.debug_utils import DebugOption, DebugUnderflowOverflow
from transformers.integrations.deepspeed import deepspeed_init, deepspeed_load_checkpoint
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_pt_utils import LayerWiseDummyScheduler
from transformers.trainer_utils import TrainOutput, speed_metrics

from compat.upstream.features import (
    ONE_PIECE_COUNTS_TOKENS_AHEAD,
    ONE_PIECE_FORGETS_SKIPPED,
    ONE_PIECE_LEAVES_TP_MODEL,
    ONE_PIECE_MAKES_OPTIMIZER_LATE_FOR_TP,
    ONE_PIECE_MAKES_SCHEDULER_LAST,
    ONE_PIECE_SEEDS_EARLY,
)
from compat.upstream.models import deactivate_neftune, update_fsdp_plugin_for_peft
from compat.upstream.schedule import Schedule
from compat.upstream.seams.common import CommonSeams, Prepared

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from transformers.trainer_utils import TrainerMemoryTracker

    from compat.upstream.values import Batch, Loader, Trial

TRAINER_STATE_NAME = "trainer_state.json"

logger = transformers.utils.logging.get_logger("transformers.trainer")


class V4Seams(CommonSeams):
    """transformers up to 5.2: the steps of its one training function, under the newest names."""

    seeds_epoch_before_callbacks: ClassVar[bool] = ONE_PIECE_SEEDS_EARLY
    counts_skipped_batches: ClassVar[bool] = not ONE_PIECE_FORGETS_SKIPPED
    restores_after_empty_window: ClassVar[bool] = False
    adds_losses_in_place: ClassVar[bool] = False
    begins_epochs_afresh: ClassVar[bool] = False

    def _adopt_batch_size(self, batch_size: int) -> None:
        # This release gives the batch size of the checkpoint to any run; the newest one where it was found.
        self._train_batch_size = batch_size if self.args.auto_find_batch_size else self.args.train_batch_size
        if self.args.auto_find_batch_size:
            if self.state.train_batch_size != batch_size:
                self.model_wrapped = self.model
                self._tell_deepspeed(batch_size)
            self.state.train_batch_size = batch_size

    def _tell_deepspeed(self, batch_size: int) -> None:
        """Have DeepSpeed's configuration follow a batch size that was found."""
        if not self.is_deepspeed_enabled:
            return
        args, given = self.args, self.args.per_device_train_batch_size
        args.per_device_train_batch_size = batch_size // max(1, args.n_gpu)
        self.propagate_args_to_deepspeed(True)
        args.per_device_train_batch_size = given

    def _measure_training(self, dataloader: Loader) -> Schedule:
        args = self.args
        batch_size = self.get_total_train_batch_size(args)
        values = self.set_initial_training_values(args, dataloader, batch_size)
        epochs, updates, examples, samples, epoch_based, length, max_steps = values
        tokens = None
        if ONE_PIECE_COUNTS_TOKENS_AHEAD and args.include_tokens_per_second:
            tokens = self.num_tokens(dataloader, None if epoch_based else max_steps)
            by_epoch = length is not None and epoch_based
            tokens *= args.num_train_epochs if by_epoch else args.gradient_accumulation_steps
        return Schedule(
            num_train_epochs=epochs,
            num_update_steps_per_epoch=updates,
            num_examples=examples,
            num_train_samples=samples,
            total_train_batch_size=batch_size,
            steps_in_epoch=args.max_steps * args.gradient_accumulation_steps
            if length is None
            else len(dataloader),
            max_steps=max_steps,
            num_train_tokens=tokens,
        )

    def _set_up_training(
        self, schedule: Schedule, dataloader: Loader, resume_from_checkpoint: str | None, trial: Trial
    ) -> Prepared:
        model, dataloader = self._prepare_for_training(schedule.max_steps, dataloader, resume_from_checkpoint)
        return Prepared(model, dataloader, *self._restore_progress(schedule, resume_from_checkpoint, trial))

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Trial,
    ) -> tuple[int, int]:
        args = self.args
        stateful = [
            callback
            for callback in [*self.callback_handler.callbacks, self.control]
            if isinstance(callback, ExportableState)
        ]
        self.state = TrainerState(stateful_callbacks=stateful)
        self.state.is_hyper_param_search = trial is not None
        self.state.train_batch_size = self._train_batch_size
        self.state.compute_steps(args, max_steps)
        self.state.epoch = 0
        # Under this name up to 5.2, and begun before a checkpoint is read.
        self.initial_num_input_tokens_seen_for_session = self.state.num_input_tokens_seen

        epochs_trained = steps_trained = 0
        state_file = os.path.join(resume_from_checkpoint or "", TRAINER_STATE_NAME)
        if resume_from_checkpoint is not None and os.path.isfile(state_file):
            self.state = TrainerState.load_from_json(state_file)
            self._forget_best_that_is_gone()
            self.compare_trainer_and_checkpoint_args(args, self.state)
            self._load_callback_state()
            epochs_trained = int(self.state.global_step // num_update_steps_per_epoch)
            if not args.ignore_data_skip:
                updates = self.state.global_step % num_update_steps_per_epoch
                steps_trained = updates * args.gradient_accumulation_steps
        self.state.init_training_references(self, max_steps, num_train_epochs, trial)
        return epochs_trained, steps_trained

    def _forget_best_that_is_gone(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and not os.path.isdir(best):
            logger.warning(
                f"The best checkpoint {best} recorded in the resumed state does not exist anymore. Ignoring "
                "it for this run."
            )
            self.state.best_model_checkpoint = None

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Loader, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        args = self.args
        if DebugOption.UNDERFLOW_OVERFLOW in args.debug:
            self._debug_overflow = DebugUnderflowOverflow(self.model)
        if self._created_lr_scheduler:
            self.lr_scheduler = None
            self._created_lr_scheduler = False
        is_late = self._optimizer_needs_prepared_model()
        if self.is_deepspeed_enabled:
            self.optimizer, self.lr_scheduler = deepspeed_init(self, num_training_steps=max_steps)
        if not is_late:
            self._make_optimizer(max_steps)
        if args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs
            )
        model = self._wrap_model(self.model_wrapped)
        if model is self.model:
            model = self._prepare_with_optimizer(max_steps, is_late)
        else:
            self.optimizer = self.accelerator.prepare(self.optimizer)
        if ONE_PIECE_MAKES_SCHEDULER_LAST:
            self.create_scheduler(num_training_steps=max_steps)
        self._keep_prepared(model)
        if resume_from_checkpoint is not None:
            self._load_sharded(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        self._show_to_callbacks(train_dataloader)
        return model, train_dataloader

    def _optimizer_needs_prepared_model(self) -> bool:
        """Whether the optimizer is made for the parameters that a prepared model has, and not before."""
        if not self.is_fsdp_enabled:
            return bool(self.is_tp_enabled) and ONE_PIECE_MAKES_OPTIMIZER_LATE_FOR_TP
        return getattr(self.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1

    def _create_hf_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """HF's scheduler, also for layerwise optimizers under a torch that counts its rates.

        HF's stand-in for the schedules of layers has a rate for each layer and one group.
        """
        try:
            return super()._create_hf_scheduler(num_training_steps, optimizer)
        except ValueError:
            layers = getattr(optimizer or self.optimizer, "optimizer_dict", None)
            if layers is None:
                raise
        # The layers have their schedules; only what tells of them was not made.
        with torch.random.fork_rng():
            self.lr_scheduler = _SchedulesOfLayers(optimizer_dict=layers, lr=self.optimizer.defaults["lr"])
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _make_optimizer(self, max_steps: int) -> None:
        if ONE_PIECE_MAKES_SCHEDULER_LAST:
            self.create_optimizer()
        else:
            self.create_optimizer_and_scheduler(num_training_steps=max_steps)

    def _prepare_with_optimizer(self, max_steps: int, is_late: bool) -> nn.Module:
        """Have the accelerator prepare the bare model, the optimizer along with it or after it."""
        if self.is_fsdp_enabled:
            # A batch size that did not fit has left it sharded.
            self.model = extract_model_from_parallel(self.model, recursive=True)
        if is_late:
            update_fsdp_plugin_for_peft(self)
            self.model = self.accelerator.prepare(self.model)
            self._make_optimizer(max_steps)
        self.model.train()
        model: nn.Module
        if self.lr_scheduler is not None and not hasattr(self.lr_scheduler, "step"):
            # DeepSpeed's configuration has a scheduler, and its engine makes it.
            model, self.optimizer, self.lr_scheduler = self.accelerator.prepare(
                self.model, self.optimizer, self.lr_scheduler
            )
        elif is_late or (self.is_tp_enabled and ONE_PIECE_LEAVES_TP_MODEL):
            model = self.model
            self.optimizer = self.accelerator.prepare(self.optimizer)
        else:
            model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        return model

    def _keep_prepared(self, model: nn.Module) -> None:
        if self.is_fsdp_enabled:
            self.model = self.model_wrapped = model
        if model is not self.model:
            self.model_wrapped = model
        if self.is_deepspeed_enabled:
            self.deepspeed = self.model_wrapped

    def _load_sharded(self, checkpoint: str) -> None:
        """Load a checkpoint into a model that could not take it before it was sharded."""
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(
                self.model_wrapped,
                checkpoint,
                load_module_strict=not hf_trainer._is_peft_model(self.model),
            )
        elif self.is_fsdp_enabled:
            self._load_from_checkpoint(checkpoint, self.model_wrapped)

    def _show_to_callbacks(self, train_dataloader: Loader) -> None:
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self.callback_handler.train_dataloader = train_dataloader

    def _finalize_training(self, trial: Trial, num_train_samples: float, start_time: float) -> TrainOutput:
        args = self.args
        if getattr(args, "past_index", 0) and hasattr(self, "_past"):
            del self._past
        if args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()

        self._total_loss_scalar += self._tr_loss.item()
        # A run without a single step must not divide by zero.
        train_loss = self._total_loss_scalar / max(self.state.global_step, 0.001)
        metrics = speed_metrics(
            "train",
            start_time,
            num_samples=num_train_samples,
            num_steps=self.state.max_steps,
            num_tokens=self._session_schedule.num_train_tokens,
        )
        self.store_flos()
        metrics["total_flos"] = self.state.total_flos
        metrics["train_loss"] = train_loss
        self.is_in_train = False
        _inner_training_loop(self._memory_tracker, metrics)
        self.log(metrics)

        self._keep_only_best(self._sorted_checkpoints(output_dir=self._get_output_dir(trial)))
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        self._finish_current_push()
        deactivate_neftune(self)
        return TrainOutput(self.state.global_step, train_loss, metrics)

    def _keep_only_best(self, checkpoints: list[str]) -> None:
        best = self.state.best_model_checkpoint
        if not self.args.should_save or best is None or self.args.save_total_limit != 1:
            return
        for checkpoint in checkpoints:
            if not os.path.samefile(checkpoint, best):
                shutil.rmtree(checkpoint, ignore_errors=True)

    def _clip_and_measure_gradients(self, model: nn.Module) -> torch.Tensor | float | None:
        if self.args.max_grad_norm is None or self.args.max_grad_norm <= 0:
            # This release keeps the norm of the last clipped step, and without clipping there is none.
            return None
        with implicit_replication() if self.is_tp_enabled else contextlib.nullcontext():
            norm: torch.Tensor | float | None = self.accelerator.clip_grad_norm_(
                model.parameters(), self.args.max_grad_norm
            )
        if self.is_deepspeed_enabled:
            norm = model.get_global_grad_norm()  # type: ignore[operator]
            norm = norm.item() if hasattr(norm, "item") else norm
        clipped: torch.Tensor | float | None = norm
        return clipped

    def _count_tokens_before_step(self, inputs: Batch) -> None:
        how = self.args.include_num_input_tokens_seen
        # A switch up to 4.56, then a word.
        if not how or how == "no":
            return
        name = getattr(self.model, "main_input_name", "input_ids")
        if name not in inputs:
            logger.warning(
                f"`include_num_input_tokens_seen={how!r}`: the batch has no {name!r} to count. "
                "Set `main_input_name` on the model class to the name of its input."
            )
            return
        count = torch.as_tensor(self._tokens_in(inputs, name), device=self.args.device, dtype=torch.int64)
        self.state.num_input_tokens_seen += self.accelerator.gather(count).sum().item()

    def _tokens_in(self, inputs: Batch, name: str) -> Any:
        """All tokens of a batch; without the padding where the arguments say so, as in transformers 5."""
        if self.args.include_num_input_tokens_seen != "non_padding":
            return inputs[name].numel()
        if "attention_mask" in inputs:
            return inputs["attention_mask"].sum()
        padding = getattr(self.processing_class, "pad_token_id", None)
        return inputs[name].numel() if padding is None else (inputs[name] != padding).sum()

    def _count_tokens_after_step(self, inputs: Batch) -> None:
        """This release counts before the micro-step."""

    def _seed_epoch(self, dataloader: Loader, epoch: int) -> None:
        if hasattr(dataloader, "set_epoch"):
            dataloader.set_epoch(epoch)

    def _forget_past(self) -> None:
        # From 5.0 on, HF's own arguments have none.
        if getattr(self.args, "past_index", -1) >= 0:
            self._past = None


class _SchedulesOfLayers(LayerWiseDummyScheduler):  # type: ignore[misc]
    """Tells the rate of the first layer, as HF's does under a torch that does not count them."""

    def get_lr(self) -> list[float]:
        """One rate, for the one group."""
        return list(super().get_lr())[: len(self.optimizer.param_groups)]


def _inner_training_loop(tracker: TrainerMemoryTracker, metrics: dict[str, float]) -> None:
    """Stop measuring memory; the tracker tells the stage by the name of the function that calls it."""
    tracker.stop_and_update_metrics(metrics)
