"""Lightning's loops, which read HF's control where Lightning would read its own flags."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.prediction_loop import _PredictionLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from compat.engine.loaders import WindowFetcher
from compat.engine.manual_optimization import ManualOptimization
from compat.engine.observers import WITHIN_STEPS, is_profiled, listens
from compat.engine.windows import ENDLESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import lightning.pytorch as pl
    from lightning.pytorch.loops.fetchers import _DataFetcher
    from torch import Tensor
    from torch.optim import Optimizer

    from compat.engine.loaders import EvaluationLoader
    from compat.engine.micro_batch import MicroBatch
    from compat.engine.session import Session
    from compat.upstream.values import Batch, Loader, Output


END_OF_EPOCH = -1
"""The value that a hook of a LightningModule returns to end the epoch before a batch."""


class UndividedResult(ClosureResult):
    """The loss as `training_step` returned it: HF has already divided it by the size of its window."""

    @classmethod
    @override
    def from_training_step_output(cls, training_step_output: Output, normalize: int = 1) -> UndividedResult:
        return cls(training_step_output)

    @override
    def _clone_loss(self) -> None:
        # Nothing scales this loss in place, so detaching it suffices and no clone is needed.
        if self.closure_loss is not None:
            self.loss = self.closure_loss.detach()


class AutomaticOptimization(_AutomaticOptimization):
    """Lightning's closure around HF's training step."""

    output_result_cls = UndividedResult

    def __init__(self, trainer: pl.Trainer, session: Session) -> None:
        super().__init__(trainer)
        self._session = session

    def run_alone(self, strategy: Any, batch: Batch, batch_idx: int) -> Tensor:
        """Run a micro-batch without Lightning's closure, by calling the parts of a step themselves.

        The closure is needed only for hooks, for an optimizer that calls it, for a gradient scaler, and for a
        strategy that takes part in backward and step.

        Args:
            strategy: one of the strategies in `compat.engine.strategies`.
            batch: the batch as HF's collator returned it.
            batch_idx: its index in the epoch.

        Returns:
            The loss of the micro-batch, as `training_step` returned it.
        """
        session, module = self._session, strategy.lightning_module
        hf, micro = session.hf, session.micro
        loss: Tensor = module.training_step(batch, batch_idx)
        if session.pending_loss is not None:
            pending, options = session.take_pending_loss()
            with hf._fit.sync_context(session):
                hf.accelerator.run_backward(pending, **options)
        if micro.syncs:
            optimizer, step = strategy.optimizers[0], self.optim_progress.optimizer.step
            step.increment_ready()
            module.configure_gradient_clipping(optimizer)
            module.optimizer_step(session.epoch, batch_idx, optimizer)
            step.increment_completed()
        return loss

    @override
    def _make_zero_grad_fn(self, batch_idx: int, optimizer: Optimizer) -> None:
        """Return None: HF zeroes gradients after the step, so a backward inside `training_step` is safe."""
        return

    @override
    def _make_backward_fn(self, optimizer: Optimizer) -> Callable[[Tensor], None]:
        return lambda _: self._backward(optimizer)

    def _backward(self, optimizer: Optimizer) -> None:
        """Run the backward of the loss that the accelerator deferred, if there is one."""
        session = self._session
        if session.pending_loss is None:
            return
        loss, options = session.take_pending_loss()
        # A backward hook may call the model again; its gradients also accumulate over the window.
        with session.hf._fit.sync_context(session):
            self.trainer.strategy.backward(loss, optimizer, **options)

    @override
    def _training_step(self, kwargs: OrderedDict[str, Any]) -> ClosureResult:
        if self._session.is_observed:
            return super()._training_step(kwargs)
        loss = self.trainer.strategy.training_step(*kwargs.values())
        return UndividedResult(cast("Tensor", loss))


class TrainingEpochLoop(_TrainingEpochLoop):
    """One epoch, micro-batch by micro-batch."""

    def __init__(self, trainer: pl.Trainer, session: Session) -> None:
        super().__init__(trainer)
        self._session = session
        self._told_to_stop = False
        self.automatic_optimization = AutomaticOptimization(trainer, session)
        self.manual_optimization = ManualOptimization(trainer, session)

    @property
    @override
    def done(self) -> bool:
        progress: Any = self.batch_progress.current
        return self._told_to_stop or progress.ready >= self.trainer.fit_loop.max_batches

    @override
    def reset(self) -> None:
        super().reset()
        self._told_to_stop = False
        session = self._session
        if session.resumes_epoch and session.steps_trained:
            # The batches that a resumed run skips count as seen.
            current: Any = self.batch_progress.current
            current.ready = current.started = current.processed = current.completed = session.steps_trained
            if session.position is not None:
                # Lightning steps it after HF has saved.
                self.update_lr_schedulers("step", update_plateau_schedulers=True)

    @property
    def _batches_that_stepped(self) -> int:
        """Completed update steps: the axis of HF's logs, on which Lightning's callbacks also log."""
        # Manual optimization counts the steps of every optimizer as `global_step`.
        is_manual = not self.trainer.lightning_module.automatic_optimization
        return self._session.hf.state.global_step if is_manual else self.global_step

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, value: int) -> None:
        """Ignore Lightning's count, which starts at 0 and is one less at an epoch's end."""

    @override
    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Run one micro-batch.

        If no Lightning callback, user module or profiler observes the run, the hooks and records that serve
        only them are skipped; the result is the same.

        Raises:
            StopIteration: a user module ends the epoch.
        """
        session, progress, connector = self._session, self.batch_progress, self.trainer._logger_connector
        if self.trainer.callbacks and not session.is_observed:  # type: ignore[attr-defined]
            # A callback was added just now.
            session.is_observed = True
        batch, _, _ = next(data_fetcher)
        if session.is_over:
            self.trainer.lightning_module.look_at(batch)  # type: ignore[operator]
            return
        progress.is_last_batch = data_fetcher.done
        progress.increment_ready()
        session.micro, session.is_counted = session.coming, False
        batch_idx = progress.current.ready - 1
        if not session.is_observed:
            self._advance_alone(session.micro, batch, batch_idx)
            return
        connector.on_batch_start(batch)
        if self._call("on_train_batch_start", batch, batch_idx) == END_OF_EPOCH:
            progress.increment_by(0, is_last_batch=True)
            progress.increment_processed()
            raise StopIteration
        progress.increment_started()
        outputs = self._run_micro_batch(batch, batch_idx)
        progress.increment_processed()
        if session.micro.syncs:
            self.trainer.lightning_module.count_update_step()  # type: ignore[operator]
        session.is_counted = session.micro.syncs
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", outputs, batch, batch_idx)
        connector.on_batch_end()
        progress.increment_completed()
        connector.update_train_step_metrics()

    def _advance_alone(self, micro: MicroBatch, batch: Batch, batch_idx: int) -> None:
        """Run one micro-batch without the hooks and records that only observers need."""
        session, progress = self._session, self.batch_progress
        strategy: Any = self.trainer.strategy
        module = strategy.lightning_module
        module.on_train_batch_start(batch, batch_idx)
        progress.increment_started()
        if session.needs_closures:
            inputs = self._build_kwargs(OrderedDict(), batch, batch_idx)
            self.automatic_optimization.run(strategy.optimizers[0], batch_idx, inputs)
        else:
            self.automatic_optimization.run_alone(strategy, batch, batch_idx)  # type: ignore[attr-defined]
        progress.increment_processed()
        if micro.syncs:
            module.count_update_step()
            session.is_counted = True
        module.on_train_batch_end(None, batch, batch_idx)
        progress.increment_completed()

    def _run_micro_batch(self, batch: Batch, batch_idx: int) -> Output:
        trainer, optimization = self.trainer, self.automatic_optimization
        if not trainer.lightning_module.automatic_optimization:
            with trainer.profiler.profile("run_training_batch"):
                return self.manual_optimization.run(self._build_kwargs(OrderedDict(), batch, batch_idx))
        if not self._session.needs_closures and not listens(trainer, *WITHIN_STEPS):
            strategy: Any = trainer.strategy
            run_alone: Any = optimization.run_alone  # type: ignore[attr-defined]
            loss = _call_alone(
                strategy.lightning_module, "training_step", run_alone, strategy, batch, batch_idx
            )
            return UndividedResult(loss).asdict()
        inputs = self._build_kwargs(OrderedDict(), batch, batch_idx)
        with trainer.profiler.profile("run_training_batch"):
            return optimization.run(trainer.optimizers[0], batch_idx, inputs)

    def _call(self, hook: str, *args: object) -> Any:
        """Call a hook of callbacks and module; callbacks that monitor a metric are called last."""
        trainer, module = self.trainer, self.trainer.lightning_module
        if not self._session.hears_all and not listens(trainer, hook):
            return _call_alone(module, hook, getattr(module, hook), *args)
        call._call_callback_hooks(trainer, hook, *args, monitoring_callbacks=False)
        answer = call._call_lightning_module_hook(trainer, hook, *args)
        call._call_callback_hooks(trainer, hook, *args, monitoring_callbacks=True)
        if hook == "on_train_batch_start":
            call._call_strategy_hook(trainer, hook, *args)
        return answer

    @override
    def _build_kwargs(
        self, kwargs: OrderedDict[str, Any], batch: Batch, batch_idx: int
    ) -> OrderedDict[str, Any]:
        """Return the arguments that Lightning finds by inspecting `training_step` at each step."""
        kwargs.update(batch=batch, batch_idx=batch_idx)
        return kwargs

    @override
    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        if self._session.is_observed:
            self.update_lr_schedulers("step", update_plateau_schedulers=True)
        control = self._session.hf.control
        # A Lightning callback can stop the run in the same way as an HF callback.
        control.should_training_stop |= self.trainer.should_stop
        # HF reads its control after a micro-step, not before the first one.
        told = control.should_epoch_stop or control.should_training_stop
        self._told_to_stop = told and not self._session.is_over

    @override
    def _should_accumulate(self) -> bool:
        micro = self._session.micro
        return micro is not None and not micro.syncs

    @property
    def has_foreign_scheduler(self) -> bool:
        """Whether Lightning steps the scheduler: a user module's own, or one that a callback installed."""
        hf, configs = self._session.hf, self.trainer.strategy.lr_scheduler_configs
        return bool(configs) and (hf._user_module.is_own or configs[0].scheduler is not hf.lr_scheduler)

    @override
    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        """Step only a scheduler that is not HF's; HF's is stepped where an update step is counted."""
        if self.has_foreign_scheduler:
            super().update_lr_schedulers(interval, update_plateau_schedulers)

    @override
    def _should_check_val_epoch(self) -> bool:
        return False

    @override
    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        """Return False: HF's control requests evaluations, and the trainer runs them immediately."""
        return False


class FitLoop(_FitLoop):
    """The epochs of a run."""

    def __init__(self, trainer: pl.Trainer, session: Session, max_epochs: int) -> None:
        super().__init__(trainer, max_epochs=max_epochs)
        self._session = session
        self._told_to_stop = False
        self.epoch_loop = TrainingEpochLoop(trainer, session)

    @property
    def is_counted(self) -> bool:
        """Whether the update step in progress has been counted."""
        return self._session.is_counted

    def fast_forward(self) -> None:
        """Count the completed steps of a resumed run as done."""
        session = self._session
        progress: Any = self.epoch_progress.current
        progress.ready = progress.started = progress.processed = progress.completed = session.epochs_trained
        steps = self.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = session.hf.state.global_step

    @property
    @override
    def done(self) -> bool:
        progress: Any = self.epoch_progress.current
        session = self._session
        has_ended = session.has_ended and not session.steps_trained
        ended: bool = (
            self._told_to_stop or has_ended or progress.processed >= session.schedule.num_train_epochs
        )
        goes_on: bool = progress.processed == self._epochs_asked_for - 1
        return ended and not goes_on

    @property
    def _epochs_asked_for(self) -> int:
        """Return the epochs with the one that a callback has added; 0 if none has."""
        planned = self._session.schedule.epochs
        return self.max_epochs if self.max_epochs == planned + 1 else 0

    @override
    def on_advance_start(self) -> None:
        # StochasticWeightAveraging recomputes the statistics of its averaged model.
        progress: Any = self.epoch_progress.current
        self._session.is_over = progress.processed == self._epochs_asked_for - 1
        with self._without_what_is_done():
            super().on_advance_start()

    @contextlib.contextmanager
    def _without_what_is_done(self) -> Iterator[None]:
        """Skip adding parameter groups in a resumed epoch: they were added at its beginning."""
        session, trainer, progress = (
            self._session,
            cast("Any", self.trainer),
            cast("Any", self.epoch_progress),
        )
        callbacks, is_first = trainer.callbacks, progress.current.processed == session.epochs_trained
        if is_first and session.resume_from_checkpoint is not None and session.steps_trained:
            trainer.callbacks = [one for one in callbacks if not isinstance(one, BaseFinetuning)]
        try:
            yield
        finally:
            trainer.callbacks = callbacks

    @property
    @override
    def skip(self) -> bool:
        """Return False: a run with nothing left to do still begins and ends, as its callbacks expect."""
        return False

    @override
    def on_run_start(self) -> None:
        with warnings.catch_warnings():
            # HF's semantics: an overridden hook is to be called once for an optimizer step.
            warnings.filterwarnings("ignore", message=".*the hooks will not be called on every batch")
            super().on_run_start()
        if self._session.goes_on_between_epochs and self._session.is_observed:
            self._end_last_epoch()

    @override
    def on_advance_end(self) -> None:
        super().on_advance_end()
        self._obey_control()

    def _obey_control(self) -> None:
        control = self._session.hf.control
        control.should_training_stop |= self.trainer.should_stop
        self._told_to_stop = control.should_training_stop

    def _end_last_epoch(self) -> None:
        """Run Lightning's end of an epoch, after HF has saved: the checkpoint does not reflect it.

        Callbacks that monitor a metric, and schedulers that depend on one, act then. They see the metrics
        stored in the checkpoint.
        """
        progress: Any = self.epoch_progress.current
        progress.completed -= 1
        call._call_callback_hooks(self.trainer, "on_train_epoch_end", monitoring_callbacks=True)
        self.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        progress.completed += 1
        self._obey_control()

    @override
    def setup_data(self) -> None:
        with _of_hf(self.trainer):
            super().setup_data()
        if not (isinstance(self._data_fetcher, WindowFetcher) or is_profiled(self.trainer)):
            assert self._combined_loader is not None
            self._data_fetcher = WindowFetcher()
            self._data_fetcher.setup(self._combined_loader)
            iter(self._data_fetcher)

    @override
    def _warn_if_modules_in_eval_mode(self) -> None:
        """Do nothing: HF puts its model into train mode at each step, whatever its mode was."""
        if _keeps_modes(self.trainer):
            super()._warn_if_modules_in_eval_mode()


class EvaluationLoop(_EvaluationLoop):
    """Lightning's validation loop over an HF dataloader.

    Args:
        trainer: the Lightning Trainer.
        trainer_fn: the Trainer's current function.
        loader: the data.
        is_first: whether a validation begins with this pass.
        is_last: whether it ends with it; otherwise `finish` is called once HF has its metrics.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        trainer_fn: TrainerFn,
        loader: EvaluationLoader | None = None,
        *,
        is_first: bool = True,
        is_last: bool = True,
    ) -> None:
        super().__init__(trainer, trainer_fn, RunningStage.VALIDATING, verbose=False, inference_mode=False)
        self._is_first, self._is_last = is_first, is_last
        if loader is not None:
            self._data_source.instance = loader

    @override
    def setup_data(self) -> None:
        with _of_hf(self.trainer):
            super().setup_data()
        self._max_batches = _unlimited(self._max_batches)

    @override
    def reset(self) -> None:
        super().reset()
        # From here on this value is only the total of progress bars; the data sets the limit.
        loader: Loader = self._data_source.instance
        self._max_batches = [getattr(loader, "batches", float("inf"))]

    def _call(self, hook: str, *, callbacks: bool) -> None:
        if callbacks:
            call._call_callback_hooks(self.trainer, hook)
        call._call_lightning_module_hook(self.trainer, hook)

    @override
    def _on_evaluation_start(self, *args: object, **kwargs: Any) -> None:
        self._call("on_validation_start", callbacks=self._is_first)
        call._call_strategy_hook(self.trainer, "on_validation_start")

    @override
    def _on_evaluation_epoch_start(self, *args: object, **kwargs: Any) -> None:
        self._call("on_validation_epoch_start", callbacks=self._is_first)

    @override
    def _on_evaluation_epoch_end(self) -> None:
        self._call("on_validation_epoch_end", callbacks=self._is_last)
        self.trainer._logger_connector.on_epoch_end()

    @override
    def _on_evaluation_end(self, *args: object, **kwargs: Any) -> None:
        self._call("on_validation_end", callbacks=self._is_last)
        call._call_strategy_hook(self.trainer, "on_validation_end")
        self.trainer._logger_connector.reset_results()

    @override
    def _on_evaluation_model_train(self) -> None:
        """HF's model stays in eval mode until its next training step; a user's module gets its modes back."""
        module: Any = self.trainer.lightning_module
        if not _keeps_modes(self.trainer):
            return
        if is_overridden("on_validation_model_train", module.model):
            module.call("on_validation_model_train")
        else:
            self._module_mode.restore(module)

    def begin(self) -> None:
        """Call the callback hooks that begin a validation."""
        for hook in ("on_validation_start", "on_validation_epoch_start"):
            call._call_callback_hooks(self.trainer, hook)

    def finish(self) -> None:
        """Call the callback hooks that end a validation."""
        trainer, connector = self.trainer, self.trainer._logger_connector
        connector.epoch_end_reached()
        call._call_callback_hooks(trainer, "on_validation_epoch_end")
        connector.on_epoch_end()
        connector.log_eval_end_metrics(connector.update_eval_epoch_metrics())
        call._call_callback_hooks(trainer, "on_validation_end")
        connector.reset_results()


class PredictionLoop(_PredictionLoop):
    """Lightning's prediction loop over an HF dataloader."""

    def __init__(self, trainer: pl.Trainer, loader: EvaluationLoader | None = None) -> None:
        super().__init__(trainer, inference_mode=False)
        if loader is not None:
            self._data_source.instance = loader

    @override
    def setup_data(self) -> None:
        with _of_hf(self.trainer):
            super().setup_data()
        self.max_batches = _unlimited(self.max_batches)

    @override
    def reset(self) -> None:
        super().reset()
        loader: Loader = self._data_source.instance
        self.max_batches = [getattr(loader, "batches", float("inf"))]

    @override
    def _on_predict_model_train(self) -> None:
        """HF's model stays in eval mode until its next training step; a user's module gets its modes back."""
        if _keeps_modes(self.trainer):
            super()._on_predict_model_train()


def _call_alone(module: pl.LightningModule, hook: str, run: Callable[..., Output], *args: object) -> Output:
    """Call what runs in a hook, under its name, on which `LightningModule.log` depends."""
    own = vars(module)
    before, own["_current_fx_name"] = module._current_fx_name, hook
    output = run(*args)
    own["_current_fx_name"] = before
    return output


def _keeps_modes(trainer: pl.Trainer) -> bool:
    """Whether the model is a user module, whose train and eval modes are left to the user."""
    return bool(getattr(trainer.lightning_module, "has_user_module", False))


@contextlib.contextmanager
def _of_hf(trainer: pl.Trainer) -> Iterator[None]:
    """Set up a loader of HF's, whose length `require_equal_lengths` has compared over all processes."""
    strategy: Any = trainer.strategy
    with own_warnings(), strategy.with_equal_lengths():
        yield


@contextlib.contextmanager
def own_warnings() -> Iterator[None]:
    """Suppress Lightning's warnings about a loader, on which a script cannot act."""
    with warnings.catch_warnings():
        # HF counts the steps between logs over all epochs.
        warnings.filterwarnings(
            "ignore", message="The number of training batches .* smaller than the logging"
        )
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no")
        yield


def _unlimited(limits: list[int | float]) -> list[int | float]:
    """Return the limits that Lightning shows: infinite where only the data sets one."""
    return [float("inf") if limit == ENDLESS else limit for limit in limits]
