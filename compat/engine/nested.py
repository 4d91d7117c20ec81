"""An evaluation pass in Lightning's loops: nested in `fit`, through `validate` or `predict`, or directly."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus

from compat.engine.loaders import EvaluationLoader
from compat.engine.loops import EvaluationLoop, PredictionLoop
from compat.engine.observers import is_observed
from compat.engine.signals import propagating

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl

    from compat.engine.evaluation import Evaluation
    from compat.engine.module import TrainerModule
    from compat.upstream.values import Loader


def is_running(trainer: pl.Trainer) -> bool:
    """Whether one of Lightning's loops is running."""
    return trainer.state.status is TrainerStatus.RUNNING


def is_fitting(trainer: pl.Trainer) -> bool:
    """Whether `fit` is running."""
    return is_running(trainer) and trainer.state.fn is TrainerFn.FITTING


def run_evaluation(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    evaluation: Evaluation,
    dataloader: Loader,
    validation: Validation | None = None,
) -> None:
    """Have Lightning loop over `dataloader`: inside `fit` if it is running, else through validate or predict.

    If nothing observes the run, and Lightning is already set up for the module, its entry point and its loop
    would have no effect and are skipped.

    Args:
        trainer: the Lightning Trainer.
        module: its module, which hands each batch to `evaluation`.
        evaluation: the pass.
        dataloader: HF's dataloader.
        validation: the evaluation that this pass belongs to, if Lightning's callbacks observe one.
    """
    loader = EvaluationLoader(dataloader)
    # In `fit`, the module that Lightning drives, even if a callback has replaced the trainer's model.
    module = cast("TrainerModule", trainer.lightning_module if is_fitting(trainer) else module)
    is_alone = _is_set_up(trainer, module) and not is_observed(
        trainer, has_user_module=module.has_user_module
    )
    outer, module.evaluation = module.evaluation, evaluation
    try:
        if is_alone:
            _run_alone(trainer, module, dataloader, predicts=evaluation.predicts)
        elif is_fitting(trainer):
            _run_nested(trainer, loader, validation, predicts=evaluation.predicts)
        elif evaluation.predicts:
            with propagating():
                trainer.predict(module, dataloaders=loader, return_predictions=False)
        else:
            with propagating():
                trainer.validate(module, dataloaders=loader, verbose=False)
    finally:
        module.evaluation = outer
        loader.release()


def _is_set_up(trainer: pl.Trainer, module: TrainerModule) -> bool:
    """Whether Lightning's current or last run used this module and is set up for an evaluation."""
    state = trainer.state
    if is_fitting(trainer):
        return True
    has_ended = state.status is TrainerStatus.FINISHED and state.fn is not TrainerFn.FITTING
    return has_ended and trainer.lightning_module is module


def _run_alone(trainer: pl.Trainer, module: TrainerModule, dataloader: Loader, *, predicts: bool) -> None:
    """Make a pass that is visible only to the module and in the Trainer's state."""
    state, nested = trainer.state, is_fitting(trainer)
    outer = state.stage
    state.stage = RunningStage.PREDICTING if predicts else RunningStage.VALIDATING
    if not nested:
        state.fn = TrainerFn.PREDICTING if predicts else TrainerFn.VALIDATING
        state.status = TrainerStatus.RUNNING
    status = TrainerStatus.INTERRUPTED
    try:
        (module.on_predict_model_eval if predicts else module.on_validation_model_eval)()
        step = module.predict_step if predicts else module.validation_step
        for index, batch in enumerate(dataloader):
            step(batch, index)
        status = TrainerStatus.FINISHED
    finally:
        state.stage = outer
        if not nested:
            state.status = status


class Validation:
    """An evaluation of HF's in the middle of `fit`, as Lightning's callbacks see it.

    HF makes a pass for each of its datasets, and computes its metrics after the last one. Callbacks see one
    validation, which ends when those metrics are available to them.
    """

    def __init__(self) -> None:
        self.loop: EvaluationLoop | None = None

    def finish(self, trainer: pl.Trainer) -> None:
        """End the validation; if a subclass evaluated without Lightning's loop, begin it here as well."""
        loop = self.loop or EvaluationLoop(trainer, TrainerFn.FITTING, is_last=False)
        with _nested(trainer, validation=loop):
            if self.loop is None:
                loop.begin()
            loop.finish()


def _run_nested(
    trainer: pl.Trainer, loader: EvaluationLoader, validation: Validation | None, *, predicts: bool
) -> None:
    """Run one of Lightning's loops in the middle of `fit`."""
    if predicts:
        prediction = PredictionLoop(trainer, loader)
        prediction.return_predictions = False
        with _nested(trainer, prediction=prediction):
            prediction.run()
        return
    is_first = validation is None or validation.loop is None
    loop = EvaluationLoop(trainer, TrainerFn.FITTING, loader, is_first=is_first, is_last=validation is None)
    if validation is not None:
        validation.loop = loop
    with _nested(trainer, validation=loop):
        loop.run()


@contextlib.contextmanager
def _nested(
    trainer: pl.Trainer,
    *,
    validation: EvaluationLoop | None = None,
    prediction: PredictionLoop | None = None,
) -> Iterator[None]:
    """Make a loop the running one, and restore the previous state afterwards."""
    stage = trainer.state.stage
    connector = trainer._logger_connector
    first_iteration = connector._first_loop_iter
    epoch_loop = trainer.fit_loop.epoch_loop
    outer_validation, outer_prediction = epoch_loop.val_loop, trainer.predict_loop
    try:
        if validation is not None:
            epoch_loop.val_loop = validation
            trainer.validating = True
        if prediction is not None:
            trainer.predict_loop = prediction
            trainer.predicting = True
        yield
    finally:
        epoch_loop.val_loop, trainer.predict_loop = outer_validation, outer_prediction
        trainer.state.stage = stage
        connector._first_loop_iter = first_iteration
