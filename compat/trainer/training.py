"""Training: HF's `train` up to its engine, Lightning's `fit` from there."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
from torch.distributed.fsdp import FSDPModule
from transformers.utils import logging

from compat.arguments.lightning import limit
from compat.callbacks.loggers import shared_logger
from compat.checkpoint import HFCheckpointIO
from compat.checkpoint.deepspeed import make_universal, processes_of
from compat.checkpoint.whole import AUTO
from compat.engine.accumulation import rescheduled, scheduler_among
from compat.engine.build import attach_session, build_trainer
from compat.engine.data import WindowLoader, require_equal_lengths
from compat.engine.guest import GuestModule, is_guest
from compat.engine.limits import limited
from compat.engine.module import TrainerModule
from compat.engine.session import Session
from compat.engine.signals import propagating
from compat.errors import CompatError
from compat.trainer.finders import FINDERS, find
from compat.trainer.guests import DataOfModule, GuestsMixin
from compat.trainer.older import take_older_name
from compat.upstream.environment import Facts
from compat.upstream.features import SCHEDULERS_THAT_WAIT
from compat.upstream.trainer import HF_RUN_EPOCH, HF_TRAINING_STEP

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import lightning.pytorch as pl
    from transformers.trainer_utils import TrainOutput

    from compat.engine.session import MicroBatch
    from compat.trainer.surprises import Surprises

logger = logging.get_logger("transformers.trainer")


class TrainingMixin(GuestsMixin):
    """`train`, and what Lightning's hooks ask of an HF Trainer while it runs."""

    announces_plan: ClassVar[bool] = False
    """Whether `train` begins with what became of the arguments, on stderr; `compat run` has it so."""

    carries_windows: ClassVar[bool] = False
    """Whether an accumulation window that an epoch ends in goes on in the next one, as it did in 4.37."""

    _lightning_module: TrainerModule | None
    _surprises: Surprises
    _train_began: float

    @property
    def lightning(self) -> pl.Trainer:
        """The Lightning Trainer of this run or of the last one; before any, one that is ready to evaluate."""
        if self._lightning is None:
            self._lightning = self._build_lightning()
        lightning: pl.Trainer = self._lightning
        return lightning

    @property
    def lightning_module(self) -> TrainerModule:
        """The LightningModule around the model."""
        if self._lightning_module is None or self._lightning_module.model is not self.model:
            self._lightning_module = self._make_module()
        return self._lightning_module

    def _make_module(self) -> TrainerModule:
        return (GuestModule if is_guest(self.model) else TrainerModule)(self, self.model)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """Train the model.

        Mirrors `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: a `checkpoint-N` folder, or a file of `trainer.lightning.save_checkpoint`;
                True for the newest folder in `args.output_dir` that is whole; "auto" for the
                same, and a fresh start where there is none. "auto" in the arguments holds where nothing is
                said here.
            trial: the trial of a hyperparameter search.
            ignore_keys_for_eval: keys of the model's output to leave out when evaluating during training.
            kwargs: `model_path`, the name that `resume_from_checkpoint` had.

        Returns:
            Update steps, mean training loss, and metrics of the run (seconds, samples and steps per second,
            flos).

        Raises:
            ArgumentError: the checkpoint is broken: the file, and what is wrong with it.
        """
        self._train_began = time.monotonic()
        kwargs["resume_from_checkpoint"] = resume_from_checkpoint
        take_older_name(kwargs, "model_path", "resume_from_checkpoint", f"{type(self).__name__}.train")
        asked = kwargs["resume_from_checkpoint"]
        if asked is None and trial is None and self.args.resume_from_checkpoint == AUTO:
            asked = AUTO
        kwargs["resume_from_checkpoint"] = self._choose_checkpoint(asked)
        if trial is not None:
            self._begin_trial()
        finders = [one for one in self._callbacks_of_lightning if isinstance(one, tuple(FINDERS))]
        try:
            find(self, finders, kwargs["resume_from_checkpoint"])
            output: TrainOutput = super().train(
                trial=trial,
                ignore_keys_for_eval=ignore_keys_for_eval,
                **kwargs,
            )
        except BaseException:
            self._leave_training()
            raise
        finally:
            self._remove_unpacked()
        return output

    def _leave_training(self) -> None:
        """Put back what `train` switches on, where it did not come to its own end."""
        with contextlib.suppress(Exception):
            # Another error ended the run, and is the one to be seen.
            self._finish_writing()
        self.is_in_train = False
        handle = getattr(self, "neftune_hook_handle", None)
        if self.neftune_noise_alpha is not None and handle is not None:
            handle.remove()

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train in `lightning.pytorch.Trainer.fit`, in place of HF's loop."""
        if getattr(type(self), "_run_epoch", None) is not HF_RUN_EPOCH:
            msg = (
                f"`{type(self).__name__}._run_epoch`: overridden, but the epoch is run by Lightning, "
                "which would not call it. Override `training_step` or `get_batch_samples`, or use a callback."
            )
            raise CompatError(msg)
        self.accelerator.free_memory()
        self._leave_evaluation()
        self._fit_to_processes(resume_from_checkpoint)
        self._adopt_batch_size(batch_size)
        dataloader = self._limited(self.get_train_dataloader(), "limit_train_batches")
        require_equal_lengths(dataloader, self.accelerator)
        schedule = self._measure_training(dataloader)
        if (scheduler := scheduler_among(self._callbacks_of_lightning, self.args)) is not None:
            schedule = rescheduled(schedule, self.args, scheduler)
        self._session_schedule = schedule
        session = Session(
            hf=self,
            schedule=schedule,
            dataloader=dataloader,
            resume_from_checkpoint=resume_from_checkpoint,
            trial=trial,
            ignore_keys=ignore_keys_for_eval,
            accumulation=self.args.gradient_accumulation_steps,
            replays_data=bool(self._lightning_flags.get("replay_data")),
            defers_backward=self._leaves_backward_to_lightning(),
            surprises=None if is_guest(self.model) else self._surprises,
        )
        return self._run_session(session)

    def _fit_to_processes(self, checkpoint: str | None) -> None:
        """Have a checkpoint of DeepSpeed's loaded by more or fewer processes than have written it."""
        if checkpoint is None or not self.is_deepspeed_enabled:
            return
        writers = processes_of(checkpoint)
        if writers in (None, self.args.world_size):
            return
        logger.warning(
            f"`resume_from_checkpoint={str(checkpoint)!r}`: written by {writers} processes "
            f"and resumed by {self.args.world_size}; putting its parts together."
        )
        if self.is_world_process_zero():
            make_universal(checkpoint)
        self.accelerator.wait_for_everyone()
        config = self.accelerator.state.deepspeed_plugin.deepspeed_config
        config.setdefault("checkpoint", {})["load_universal"] = True

    def _leave_evaluation(self) -> None:
        """Put the model back into the state that an evaluation ahead of training has taken it out of."""
        if self.is_deepspeed_enabled and self.accelerator.deepspeed_engine_wrapped is None:
            # That engine was made to evaluate, and could not train.
            self.model_wrapped, self.deepspeed = self.model, None
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                # The last forward has left some of its parameters whole; the optimizer must see the shards.
                module.reshard()

    def _sync_context(self, batch: MicroBatch, model: Any) -> AbstractContextManager[None]:
        """Where gradients wait for the end of their window."""
        is_managed = getattr(self, "is_distributed_loading_by_transformers", False) and isinstance(
            model, FSDPModule
        )
        if is_managed and not batch.closes:
            context: AbstractContextManager[None] = self._defer_fsdp_gradient_reduction()
            return context
        waiting: AbstractContextManager[None] = self.accelerator.sync_context(batch, model)
        return waiting

    def _limited(self, dataloader: Any, name: str) -> Any:
        return limited(dataloader, limit(self._lightning_flags, name))

    def _run_session(self, session: Session) -> TrainOutput:
        lightning = self._lightning = self._build_lightning()
        attach_session(lightning, session)
        self._lightning_module = module = self._make_module()
        module.session = session
        try:
            with self.accelerator.serving(lightning, session), propagating():
                lightning.fit(module, train_dataloaders=WindowLoader(session), val_dataloaders=[])
        finally:
            self.args.gradient_accumulation_steps = session.accumulation
            module.session = None
            session.end()
            for dataset in (self.train_dataset, self.eval_dataset):
                if isinstance(dataset, DataOfModule):
                    dataset.teardown()
        output: TrainOutput = session.output
        return output

    @property
    def _callbacks_of_lightning(self) -> list[Any]:
        """Those of `lightning={"callbacks": …}`, then those among the Trainer's own."""
        asked = self._lightning_flags.get("callbacks") or []
        return [*(asked if isinstance(asked, (list, tuple)) else [asked]), *self._lightning_callbacks]

    def _build_lightning(self) -> pl.Trainer:
        callbacks = [one for one in self._callbacks_of_lightning if not isinstance(one, tuple(FINDERS))]
        lightning = build_trainer(
            self.plan,
            device=self.args.device,
            checkpoint_io=HFCheckpointIO(),
            scaler=self.accelerator.scaler,
            default_root_dir=self.args.output_dir,
            asked={**self._lightning_flags, "callbacks": callbacks},
            facts=Facts.of(self.args),
        )
        if not lightning.barebones:
            shared = (shared_logger(callback, self) for callback in self.callback_handler.callbacks)
            lightning.loggers = [*lightning.loggers, *filter(None, shared)]
        return lightning

    @property
    def _lightning_flags(self) -> dict[str, Any]:
        """`args.lightning`, where the arguments have it."""
        return getattr(self.args, "lightning", None) or {}

    def _leaves_backward_to_lightning(self) -> bool:
        """Whether nobody can look at gradients between HF's backward and the end of `training_step`."""
        method = getattr(self.training_step, "__func__", None)
        is_watched = "backward" in vars(self.accelerator)
        return method is HF_TRAINING_STEP and not is_watched

    def _scheduler_waits_for_metrics(self) -> bool:
        """Whether HF steps the scheduler with the metrics of an evaluation."""
        return isinstance(self.lr_scheduler, SCHEDULERS_THAT_WAIT)

    def _announce_training(self, session: Session) -> None:
        schedule, args = session.schedule, self.args
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        if self.announces_plan and self.is_world_process_zero():
            self._print_plan()
        logger.info("***** Running training *****")
        for name, value in (
            ("Num examples", schedule.num_examples),
            ("Num Epochs", schedule.num_train_epochs),
            ("Num update steps per epoch", schedule.num_update_steps_per_epoch),
            ("Instantaneous batch size per device", args.per_device_train_batch_size),
            (
                "Total train batch size (w. parallel, distributed & accumulation)",
                schedule.total_train_batch_size,
            ),
            ("Gradient Accumulation steps", args.gradient_accumulation_steps),
            ("Total optimization steps", schedule.max_steps),
            ("Number of trainable parameters", trainable),
        ):
            logger.info(f"  {name} = {value:,}")
        if session.resume_from_checkpoint is not None:
            logger.info(
                f"  Resuming from update step {self.state.global_step}: "
                f"skipping {session.epochs_trained} epochs and {session.steps_trained} batches"
            )

    def _print_plan(self) -> None:
        flags = self.plan.flags
        engine = f"Lightning {lightning.__version__} ({flags['accelerator']}, {flags['precision']})"
        sys.stderr.write(f"compat: training on {engine}\n{self.plan.summary()}\n")

    def _warn_of_empty_epoch(self, session: Session) -> None:
        logger.warning(
            "There seems not to be a single sample in your epoch_iterator, stopping training at step "
            f"{self.state.global_step}! The dataset has fewer samples than "
            f"max_steps={session.schedule.max_steps} asks for. "
            "Lower max_steps, or have the dataset start again at each epoch."
        )
        self.control.should_training_stop = True
