"""Lightning's loops, asking HF's control where Lightning would ask its own flags."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.prediction_loop import _PredictionLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from typing_extensions import override

from compat.engine.data import ENDLESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import lightning.pytorch as pl
    from lightning.pytorch.loops.fetchers import _DataFetcher
    from torch import Tensor
    from torch.optim import Optimizer

    from compat.engine.data import EvaluationLoader
    from compat.engine.session import Session


class UndividedResult(ClosureResult):
    """The loss as `training_step` returned it: HF has already divided it by the size of its window."""

    @classmethod
    @override
    def from_training_step_output(cls, training_step_output: Any, normalize: int = 1) -> UndividedResult:
        return cls(training_step_output)

    @override
    def _clone_loss(self) -> None:
        # Nothing scales this loss in place, so that its detached self is copy enough.
        if self.closure_loss is not None:
            self.loss = self.closure_loss.detach()


class AutomaticOptimization(_AutomaticOptimization):
    """Lightning's closure around HF's training step."""

    output_result_cls = UndividedResult

    def __init__(self, trainer: pl.Trainer, session: Session) -> None:
        super().__init__(trainer)
        self._session = session

    @override
    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict[str, Any]) -> dict[str, Any]:
        """Run a micro-batch.

        Lightning's closure serves an optimizer that calls it, and a strategy that must hold back its
        reduction: in the middle of a window, on one device and with nobody listening, there is neither.
        """
        session = self._session
        if session.needs_closures or kwargs["batch"].syncs:
            return super().run(optimizer, batch_idx, kwargs)
        loss = self.trainer.strategy.training_step(*kwargs.values())
        self._backward(optimizer)
        return {"loss": loss}

    @override
    def _make_zero_grad_fn(self, batch_idx: int, optimizer: Optimizer) -> None:
        """HF zeroes gradients right after the step, where a backward inside `training_step` is safe."""
        return

    @override
    def _make_backward_fn(self, optimizer: Optimizer) -> Callable[[Tensor], None]:
        return lambda _: self._backward(optimizer)

    def _backward(self, optimizer: Optimizer) -> None:
        """Run the backward of the loss that the accelerator has left to us, if it has."""
        session = self._session
        if session.pending_loss is None:
            return
        loss, session.pending_loss = session.pending_loss, None
        options, session.backward_options = session.backward_options, {}
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

    @property
    @override
    def done(self) -> bool:
        return self._told_to_stop or self._num_ready_batches_reached()

    @override
    def reset(self) -> None:
        super().reset()
        self._told_to_stop = False
        session = self._session
        if session.resumes_epoch and session.steps_trained:
            # The batches that a resumed run skips count as seen.
            current: Any = self.batch_progress.current
            current.ready = current.started = current.processed = current.completed = session.steps_trained

    @override
    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Run one micro-batch.

        Where no Lightning callback, logger or profiler listens, the hooks and records that serve only them
        are left out; what is computed is the same.
        """
        if self._session.is_observed:
            super().advance(data_fetcher)
            return
        micro, batch_idx, _ = next(data_fetcher)
        module = self.trainer.lightning_module
        progress = self.batch_progress
        progress.is_last_batch = data_fetcher.done
        progress.increment_ready()
        module.on_train_batch_start(micro, batch_idx)
        progress.increment_started()
        inputs = self._build_kwargs(OrderedDict(), micro, batch_idx)
        outputs = self.automatic_optimization.run(self.trainer.optimizers[0], batch_idx, inputs)
        progress.increment_processed()
        module.on_train_batch_end(outputs, micro, batch_idx)
        progress.increment_completed()

    @override
    def _build_kwargs(
        self, kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int
    ) -> OrderedDict[str, Any]:
        """What Lightning finds by inspecting `training_step` anew at each step."""
        kwargs.update(batch=batch, batch_idx=batch_idx)
        return kwargs

    @override
    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        if self._session.is_observed:
            super().on_advance_end(data_fetcher)
        else:
            self._batches_that_stepped += not self._should_accumulate()
        control = self._session.hf.control
        # A Lightning callback that stops the run is obeyed as an HF one would be.
        control.should_training_stop |= self.trainer.should_stop
        # HF looks at its control after a micro-step and not before the first one.
        self._told_to_stop = control.should_epoch_stop or control.should_training_stop

    @override
    def _should_accumulate(self) -> bool:
        micro = self._session.micro
        return micro is not None and not micro.syncs

    @override
    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        """The module steps the scheduler between two events of HF's callbacks."""

    @override
    def _should_check_val_epoch(self) -> bool:
        return False

    @override
    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        """HF's control asks for evaluation, at any step, and the trainer runs it then and there."""
        return False


class FitLoop(_FitLoop):
    """The epochs of a run."""

    def __init__(self, trainer: pl.Trainer, session: Session, max_epochs: int) -> None:
        super().__init__(trainer, max_epochs=max_epochs)
        self._session = session
        self._told_to_stop = False
        self.epoch_loop = TrainingEpochLoop(trainer, session)

    def fast_forward(self) -> None:
        """Count what lies behind a resumed run as done."""
        session = self._session
        progress: Any = self.epoch_progress.current
        progress.ready = progress.started = progress.processed = progress.completed = session.epochs_trained
        steps = self.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = session.hf.state.global_step

    @property
    @override
    def done(self) -> bool:
        progress: Any = self.epoch_progress.current
        return self._told_to_stop or progress.processed >= self._session.schedule.num_train_epochs

    @property
    @override
    def skip(self) -> bool:
        """A run with nothing left to do still begins and ends, as its callbacks expect."""
        return False

    @override
    def on_advance_end(self) -> None:
        super().on_advance_end()
        self._told_to_stop = self._session.hf.control.should_training_stop

    @override
    def setup_data(self) -> None:
        with _own_warnings():
            super().setup_data()

    @override
    def _warn_if_modules_in_eval_mode(self) -> None:
        """HF puts the model into train mode at each step, whatever mode it arrives in."""


class EvaluationLoop(_EvaluationLoop):
    """Lightning's validation loop over an HF dataloader."""

    def __init__(
        self, trainer: pl.Trainer, trainer_fn: TrainerFn, loader: EvaluationLoader | None = None
    ) -> None:
        super().__init__(trainer, trainer_fn, RunningStage.VALIDATING, verbose=False, inference_mode=False)
        if loader is not None:
            self._data_source.instance = loader

    @override
    def setup_data(self) -> None:
        with _own_warnings():
            super().setup_data()
        self._max_batches = _unlimited(self._max_batches)


class PredictionLoop(_PredictionLoop):
    """Lightning's prediction loop over an HF dataloader."""

    def __init__(self, trainer: pl.Trainer, loader: EvaluationLoader | None = None) -> None:
        super().__init__(trainer, inference_mode=False)
        if loader is not None:
            self._data_source.instance = loader

    @override
    def setup_data(self) -> None:
        with _own_warnings():
            super().setup_data()
        self.max_batches = _unlimited(self.max_batches)

    @override
    def _on_predict_model_train(self) -> None:
        """HF leaves the model in eval mode, and puts it into train mode at its next training step."""


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Keep back a warning that Lightning draws from torch when it reads a loader; no script can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
        yield


def _unlimited(limits: list[int | float]) -> list[int | float]:
    """Limits as Lightning shows them, infinite where only the data sets one."""
    return [float("inf") if limit == ENDLESS else limit for limit in limits]
