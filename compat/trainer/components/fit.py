"""Training: the Lightning objects of a trainer, and a run of `fit` with HF's model and data."""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import accelerate
import lightning
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer as HFTrainer  # HF's own, also after `compat.install()`
from transformers import trainer as hf_trainer
from transformers.integrations.integration_utils import rewrite_logs
from transformers.utils import logging

from compat.arguments.lightning import limit
from compat.callbacks.finders import is_finder
from compat.callbacks.loggers import shared_logger
from compat.checkpoint import HFCheckpointIO
from compat.checkpoint.deepspeed_files import make_universal, processes_of
from compat.engine.accumulation import rescheduled, scheduler_among
from compat.engine.build import attach_session, build_trainer
from compat.engine.limits import limited
from compat.engine.loaders import WindowLoader, require_equal_lengths
from compat.engine.manual_optimization import ManualModuleAdapter, is_manual
from compat.engine.module import TrainerModule
from compat.engine.session import Session
from compat.engine.signals import propagating
from compat.engine.user_module import UserModuleAdapter, is_user_module
from compat.errors import CompatError
from compat.trainer.component import Component
from compat.trainer.datamodule_dataset import DataModuleDataset
from compat.translate import plan, strategy_of
from compat.upstream import started
from compat.upstream.collector import spared
from compat.upstream.environment import Facts
from compat.upstream.features import SCHEDULERS_THAT_WAIT
from compat.upstream.instrumented import unheard_fit
from compat.upstream.patched import REPLACED, is_patched, is_upstream, refuse_patches, where_written
from compat.upstream.ulysses import own_attention

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    import lightning.pytorch as pl
    from torch import nn
    from transformers.trainer_utils import TrainOutput

    from compat.engine.host import RunState, TrainerHost
    from compat.translate import LightningPlan
    from compat.upstream.values import Loader, Trial

logger = logging.get_logger("transformers.trainer")

NOTHING = contextlib.nullcontext()


class Fit(Component):
    """Builds the Lightning Trainer and its module, and runs `fit`.

    Attributes:
        built: the Lightning Trainer of this run or of the last one; None before any.
    """

    _has_run: ClassVar[bool] = False

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self.built: pl.Trainer | None = None
        self._module: TrainerModule | None = None
        self._facts: Facts | None = None
        self._strategy: str | None = None
        self._plan: LightningPlan | None = None

    # The arguments are checked once for a trainer and at each `train`; the plan is made when it is read.

    def check_arguments(self) -> None:
        """Read the facts and check the current arguments; the plan is made anew when it is next read.

        Raises:
            ArgumentError: lists every conflict among them.
        """
        hf = self.hf
        self._facts, self._plan = Facts.of(hf.args), None
        self._strategy = strategy_of(hf.args, self._facts, getattr(hf, "model", None))

    @property
    def plan(self) -> LightningPlan:
        """What becomes of the arguments."""
        if self._plan is None:
            self._plan = plan(self.hf.args, self.facts, getattr(self.hf, "model", None))
        return self._plan

    @property
    def strategy(self) -> str:
        """The plan's strategy, by its name."""
        if self._strategy is None:
            self.check_arguments()
        assert self._strategy is not None
        return self._strategy

    @property
    def facts(self) -> Facts:
        """What the plan knows of the machine and of the process."""
        if self._facts is None:
            self.check_arguments()
        assert self._facts is not None
        return self._facts

    # The Lightning objects.

    @property
    def lightning(self) -> pl.Trainer:
        """The Lightning Trainer of this run or of the last one; before any, one that is ready to evaluate."""
        if self.built is None:
            self.built = self.build()
        return self.built

    @property
    def lightning_module(self) -> TrainerModule:
        """The LightningModule around the model."""
        module = self._module
        # A run keeps its module where sharding replaces the model by a wrapper of it.
        if module is None or (module.session is None and module.model is not self.hf.model):
            module = self._module = self.make_module()
        return module

    @property
    def session(self) -> Session | None:
        """The run in progress."""
        return None if self._module is None else self._module.session

    @property
    def flags(self) -> dict[str, Any]:
        """`args.lightning`, where the arguments have it."""
        return getattr(self.hf.args, "lightning", None) or {}

    @property
    def callbacks(self) -> list[Any]:
        """Lightning's callbacks: those of `lightning={"callbacks": …}`, then those of the trainer."""
        asked = self.flags.get("callbacks") or []
        return [*(asked if isinstance(asked, (list, tuple)) else [asked]), *self.hf._callbacks.lightning]

    @property
    def finders(self) -> list[Any]:
        """The callbacks that search for an argument before training."""
        return [one for one in self.callbacks if is_finder(one)]

    def make_module(self) -> TrainerModule:
        """Build a LightningModule around the model."""
        hf = self.hf
        if is_manual(hf.model):
            return ManualModuleAdapter(hf, hf.model)
        return (UserModuleAdapter if is_user_module(hf.model) else TrainerModule)(hf, hf.model)

    def build(self) -> pl.Trainer:
        """Build a Lightning Trainer from the plan."""
        hf = self.hf
        callbacks = [one for one in self.callbacks if not is_finder(one)]
        built = build_trainer(
            self.plan,
            device=hf.args.device,
            checkpoint_io=HFCheckpointIO(),
            scaler=hf.accelerator.scaler,
            default_root_dir=hf.args.output_dir,
            asked={**self.flags, "callbacks": callbacks},
            facts=self.facts,
        )
        if is_manual(hf.model):
            # The module clips by itself, and Lightning refuses a value of the Trainer's.
            built.gradient_clip_val = None
        if not built.barebones:
            shared = (shared_logger(callback, hf) for callback in hf.callback_handler.callbacks)
            built.loggers = [*built.loggers, *filter(None, shared)]
        return built

    def limited(self, dataloader: Loader, name: str) -> Loader:
        """Limit a dataloader as a Lightning flag requires.

        Args:
            dataloader: HF's loader.
            name: the name of the flag.
        """
        return limited(dataloader, limit(self.flags, name))

    # A run.

    def require_lightning(self) -> None:
        """Refuse an edited copy of HF's loop in the place of ours, when it reads its first batch.

        A patch that is made after `compat.install()` lands on our class. It may call ours as the original;
        that it does not is seen no earlier. A subclass may have a loop of its own.

        Raises:
            CompatError: names the method that was replaced, and where it was written.
        """
        hf = self.hf
        if not hf.is_in_train or self.session is not None:
            return
        owner = next(kind for kind in type(hf).__mro__ if "_inner_training_loop" in vars(kind))
        method = vars(owner)["_inner_training_loop"]
        written = where_written(method)
        if not owner.__module__.startswith("compat.") or written.startswith(inspect.getfile(owner)):
            return
        msg = (
            f"`{owner.__name__}._inner_training_loop`: replaced ({written}) by a loop of its own, and "
            "the loop over batches is Lightning's. Have it call the original. "
            f"{REPLACED['_inner_training_loop']}"
        )
        raise CompatError(msg)

    def prepare(
        self, batch_size: int | None, checkpoint: str | None, trial: Trial, ignore_keys: list[str] | None
    ) -> Session:
        """Create the session of a run of `fit`.

        Args:
            batch_size: samples of a micro-batch, as HF's `train` determined them.
            checkpoint: the checkpoint that the run resumes from.
            trial: the trial of a hyperparameter search.
            ignore_keys: output keys to leave out when evaluating during training.

        Raises:
            CompatError: a subclass overrides the one method of HF's training loop that is not called.
        """
        hf = self.hf
        refuse_patches()
        started.require_group()
        overridden = inspect.getattr_static(type(hf), "_run_epoch", None)
        if overridden is not inspect.getattr_static(HFTrainer, "_run_epoch", None):
            msg = (
                f"`{type(hf).__name__}._run_epoch`: overridden, but the epoch is run by Lightning, "
                "which would not call it. Override `training_step` or `get_batch_samples`, or use a callback."
            )
            raise CompatError(msg)
        self.check_arguments()
        hf._user_module.check_manual()
        hf._distribution.check_loss()
        self._free_memory()
        self._leave_evaluation()
        self._fit_to_processes(checkpoint)
        hf._adopt_batch_size(batch_size)
        dataloader = hf._distribution.shard_batches(hf.get_train_dataloader())
        dataloader = self.limited(dataloader, "limit_train_batches")
        require_equal_lengths(dataloader, hf.accelerator)
        schedule = hf._measure_training(dataloader)
        if (scheduler := scheduler_among(self.callbacks, hf.args)) is not None:
            schedule = rescheduled(schedule, hf.args, scheduler)
        hf._session_schedule = schedule
        return Session(
            hf=hf,
            schedule=schedule,
            dataloader=dataloader,
            resume_from_checkpoint=checkpoint,
            trial=trial,
            ignore_keys=ignore_keys,
            accumulation=hf.args.gradient_accumulation_steps,
            replays_data=bool(self.flags.get("replay_data")),
            defers_backward=self._leaves_backward_to_lightning(),
            surprises=None if is_user_module(hf.model) else hf._surprises,
        )

    def run(self, session: Session) -> TrainOutput:
        """Train in Lightning's `fit`.

        Args:
            session: of the run.

        Returns:
            What `train` returns.
        """
        hf = self.hf
        built = self.built = self.build()
        attach_session(built, session)
        self._module = module = self.make_module()
        module.session = session
        try:
            with self._own_attention(), hf.accelerator.serving(built, session), propagating():
                unheard_fit(built, module, train_dataloaders=WindowLoader(session), val_dataloaders=[])
        finally:
            hf.args.gradient_accumulation_steps = session.accumulation
            module.session = None
            session.end()
            for dataset in (hf.train_dataset, hf.eval_dataset):
                if isinstance(dataset, DataModuleDataset):
                    dataset.teardown()
        output: TrainOutput = session.output
        return output

    def _own_attention(self) -> AbstractContextManager[None]:
        """Return a context that undoes what sharing sequences changes for all models of the process."""
        return own_attention() if self.hf.accelerator.shares_sequences else NOTHING

    def give_up(self) -> None:
        """Reset what `train` switches on, if `train` did not finish."""
        hf = self.hf
        hf.is_in_train = False
        handle = getattr(hf, "neftune_hook_handle", None)
        if hf.neftune_noise_alpha is not None and handle is not None:
            handle.remove()

    def _fit_to_processes(self, checkpoint: str | None) -> None:
        """Prepare a DeepSpeed checkpoint to be loaded by another number of processes than wrote it."""
        hf = self.hf
        if checkpoint is None or not hf.is_deepspeed_enabled:
            return
        writers = processes_of(checkpoint)
        if writers in (None, hf.args.world_size):
            return
        logger.warning(
            f"`resume_from_checkpoint={str(checkpoint)!r}`: written by {writers} processes "
            f"and resumed by {hf.args.world_size}; putting its parts together."
        )
        if hf.is_world_process_zero():
            make_universal(checkpoint)
        hf.accelerator.wait_for_everyone()
        config = hf.accelerator.state.deepspeed_plugin.deepspeed_config
        config.setdefault("checkpoint", {})["load_universal"] = True

    def _free_memory(self) -> None:
        """Free the memory of earlier runs as HF does, whose accelerator collects garbage at each run's start.

        In a big program that takes as long as hundreds of small steps. The first run of a process has no
        earlier one to clear up after; on a device, where memory is scarce, it collects all the same.
        """
        is_first = not Fit._has_run and self.facts.device_type == "cpu"
        Fit._has_run = True
        with spared() if is_first else contextlib.nullcontext():
            self.hf.accelerator.free_memory()

    def _leave_evaluation(self) -> None:
        """Restore the model to its state before an evaluation that preceded training."""
        hf = self.hf
        if hf.is_deepspeed_enabled and hf.accelerator.deepspeed_engine_wrapped is None:
            # That engine was built for evaluation, and cannot train.
            hf.model_wrapped, hf.deepspeed = hf.model, None
        for module in hf.model.modules():
            if isinstance(module, FSDPModule):
                # The last forward left some parameters unsharded; the optimizer must see the shards.
                module.reshard()

    def _leaves_backward_to_lightning(self) -> bool:
        """Whether no user code can read gradients between HF's backward and the end of `training_step`."""
        hf = self.hf
        method = getattr(hf.training_step, "__func__", None)
        is_watched = "backward" in vars(hf.accelerator) or is_patched(accelerate.Accelerator, "backward")
        # The tensors of a shared context are whole again at the end of `training_step`.
        is_within = hf.accelerator.shares_contexts
        return is_upstream(method, "transformers") and not (is_watched or is_within)

    @contextlib.contextmanager
    def accumulation_as_given(self) -> Iterator[None]:
        """Save the original arguments: GradientAccumulationScheduler changes one in each epoch."""
        args, session = self.hf.args, self.session
        current = args.gradient_accumulation_steps
        if session is not None:
            args.gradient_accumulation_steps = session.accumulation
        try:
            yield
        finally:
            args.gradient_accumulation_steps = current

    # Used by Lightning's hooks.

    def holds_back(self, model: nn.Module) -> bool:
        """Whether gradients are synchronized at the end of a window only.

        Args:
            model: the model as a training step calls it.
        """
        return self._defers_reduction(model) or self.hf.accelerator.holds_back(model)

    def _defers_reduction(self, model: nn.Module | None) -> bool:
        is_managed = getattr(self.hf, "is_distributed_loading_by_transformers", False)
        return bool(is_managed) and isinstance(model, FSDPModule)

    def sync_context(self, session: Session) -> AbstractContextManager[None]:
        """Return a context in which gradients are not synchronized until the end of their window.

        Args:
            session: the run, with the micro-batch in progress.
        """
        if session.micro.closes or not session.holds_back:
            return NOTHING
        hf, model = self.hf, session.model
        if self._defers_reduction(model):
            return hf._defer_fsdp_gradient_reduction()
        waiting: AbstractContextManager[None] = hf.accelerator.no_sync(model)
        return waiting

    def scheduler_waits_for_metrics(self) -> bool:
        """Whether HF steps the scheduler with the metrics of an evaluation."""
        return isinstance(self.hf.lr_scheduler, SCHEDULERS_THAT_WAIT)

    def show_logs(self, logs: Mapping[str, Any]) -> None:
        """Pass HF's logs on to Lightning's callbacks and loggers.

        Args:
            logs: name → value.
        """
        hf = self.hf
        if self.built is not None:
            self.built._logger_connector.show(logs)  # type: ignore[attr-defined]
        if not self.flags.get("logger") or not hf.is_world_process_zero():
            return
        numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
        for one in self.lightning.loggers:
            # HF's own integration has already written to this logger.
            if not getattr(one, "belongs_to_hf", False):
                one.log_metrics(rewrite_logs(numbers), step=hf.state.global_step)

    def announce(self, session: RunState) -> None:
        """Log the length of the run.

        Args:
            session: of the run.

        Raises:
            SystemExit: the run is to stop before it trains.
        """
        hf, schedule = self.hf, session.schedule
        trainable = hf_trainer.get_model_param_count(hf.model, trainable_only=True)
        lengths = {
            "Num examples": schedule.num_examples,
            "Num Epochs": schedule.num_train_epochs,
            "Num update steps per epoch": schedule.num_update_steps_per_epoch,
            "Instantaneous batch size per device": hf.args.per_device_train_batch_size,
            "Total train batch size (w. parallel, distributed & accumulation)": (
                schedule.total_train_batch_size
            ),
            "Gradient Accumulation steps": hf.args.gradient_accumulation_steps,
            "Total optimization steps": schedule.max_steps,
            "Number of trainable parameters": trainable,
        }
        lines = [f"  {name} = {value:,}" for name, value in lengths.items()]
        if session.resume_from_checkpoint is not None:
            lines.append(
                f"  Resuming from update step {hf.state.global_step}: "
                f"skipping {session.epochs_trained} epochs and {session.steps_trained} batches"
            )
        if hf.announces_plan and hf.is_world_process_zero():
            self._print_plan()
        for line in ("***** Running training *****", *lines):
            logger.info(line)
        if hf.stops_before_training:
            if hf.is_world_process_zero():
                sys.stderr.write("\n".join([*lines, "compat: stopped before training.", ""]))
            raise SystemExit(0)

    def _print_plan(self) -> None:
        flags = self.plan.flags
        engine = f"Lightning {lightning.__version__} ({flags['accelerator']}, {flags['precision']})"
        sys.stderr.write(f"compat: training on {engine}\n{self.plan.summary()}\n")

    def warn_of_empty_epoch(self, session: RunState) -> None:
        """Stop a run whose epoch has no batch.

        Args:
            session: of the run.
        """
        hf = self.hf
        logger.warning(
            "There seems not to be a single sample in your epoch_iterator, stopping training at step "
            f"{hf.state.global_step}! The dataset has fewer samples than "
            f"max_steps={session.schedule.max_steps} asks for. "
            "Lower max_steps, or have the dataset start again at each epoch."
        )
        hf.control.should_training_stop = True
