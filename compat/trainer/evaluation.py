"""Evaluation and prediction: HF's chain of methods, with Lightning's loop in its middle."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import has_length
from transformers.utils import logging

from compat.engine.data import require_equal_lengths
from compat.engine.evaluation import Evaluation, Validation, is_fitting, is_running, run_evaluation
from compat.engine.guest import UserModuleEvaluation, is_guest
from compat.errors import ArgumentError
from compat.trainer.training import TrainingMixin

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    from torch import nn
    from transformers.trainer_utils import EvalLoopOutput

    from compat.engine.module import TrainerModule

logger = logging.get_logger("transformers.trainer")

NO_MODEL = (
    "`model`: after `hyperparameter_search` the trainer has none, for each trial had its own. Set the "
    "`hyperparameters` of the best run in `trainer.args` and call `trainer.train()`, which makes one by "
    "`model_init`."
)

SPREADS_PARAMETERS = 3
"""The stage of ZeRO in which no process has a whole model."""


class EvaluationMixin(TrainingMixin):
    """`evaluate` and `predict` are inherited; the loop that they call is Lightning's."""

    _validation: Validation | None = None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate. Mirrors `transformers.Trainer.evaluate`."""
        with self._one_validation():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._one_validation():
            metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
        return metrics

    @contextlib.contextmanager
    def _one_validation(self) -> Iterator[None]:
        """Where Lightning's callbacks watch a run, have all of an evaluation be one to them."""
        is_watched = self._lightning is not None and is_fitting(self._lightning) and self._lightning.callbacks
        if self._validation is not None or not is_watched:
            yield
            return
        self._validation = validation = Validation()
        try:
            yield
        finally:
            self._validation = None
        validation.finish(self._lightning)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate or predict over a dataloader.

        Mirrors `transformers.Trainer.evaluation_loop`. Lightning's validation loop (its prediction loop for
        the description "Prediction") calls `prediction_step` with each batch.

        Args:
            dataloader: batches as HF's loaders make them.
            description: what the pass is called in the log.
            prediction_loss_only: whether only losses are kept; `args.prediction_loss_only` where None.
            ignore_keys: keys of the model's output to leave out.
            metric_key_prefix: prefix of every metric.

        Returns:
            Predictions of shape (samples, …), labels of shape (samples, …), metrics, and the number of
            samples.
        """
        if prediction_loss_only is None:
            prediction_loss_only = self.args.prediction_loss_only
        stage = "predict" if description == "Prediction" else "val"
        dataloader = self._limited(dataloader, f"limit_{stage}_batches")
        require_equal_lengths(dataloader, self.accelerator)
        model = self._prepare_model_for_evaluation(dataloader)
        self._announce_evaluation(dataloader, description)
        self.callback_handler.eval_dataloader = dataloader
        kind = UserModuleEvaluation if is_guest(self.model) else Evaluation
        evaluation = kind(
            self,
            model,
            description=description,
            prediction_loss_only=prediction_loss_only,
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
            validation=self._validation,
        )
        self._forget_past()
        lightning, module = self._evaluating_lightning()
        run_evaluation(lightning, module, evaluation, dataloader)
        # What `past_index` has carried through the evaluation is nothing to train on.
        self._forget_past()
        return evaluation.result(dataloader)

    def _evaluating_lightning(self) -> tuple[pl.Trainer, TrainerModule]:
        """A Lightning Trainer that can evaluate now: `fit` can be interrupted, another evaluation cannot."""
        if is_running(self.lightning) and not is_fitting(self.lightning):
            return self._build_lightning(), self._make_module()
        return self.lightning, self.lightning_module

    def prediction_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """`evaluation_loop`, under the name that `use_legacy_prediction_loop` calls."""
        # Not `self.evaluation_loop`: that a subclass overrides one says nothing of the other.
        return EvaluationMixin.evaluation_loop(
            self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def _prepare_model_for_evaluation(self, dataloader: Any) -> nn.Module:
        args = self.args
        if self.model is None:
            raise ArgumentError(NO_MODEL)
        if self._needs_inference_engine():
            deepspeed_init(self, num_training_steps=0, inference=True)
        model: nn.Module = self._wrap_model(self.model, training=False, dataloader=dataloader)
        if len(self.accelerator._models) == 0 and model is self.model:
            start = time.time()
            model = self._prepare_model_alone(model)
            self.model_preparation_time = round(time.time() - start, 4)
        if not self.is_in_train:
            for asked, dtype in (
                (args.fp16_full_eval, torch.float16),
                (args.bf16_full_eval, torch.bfloat16),
            ):
                if asked:
                    return model.to(dtype=dtype, device=args.device)
        return model

    def _needs_inference_engine(self) -> bool:
        """Whether only an engine of DeepSpeed's can evaluate the model: its stage 3 has spread it."""
        if not self.is_deepspeed_enabled or self.deepspeed is not None:
            return False
        return bool(self.accelerator.deepspeed_plugin.zero_stage == SPREADS_PARAMETERS)

    def _prepare_model_alone(self, model: nn.Module) -> nn.Module:
        """Have the accelerator prepare a model that is evaluated before it was trained."""
        has_engine = self._needs_inference_engine()
        prepared: nn.Module = (
            self.accelerator.prepare(model)
            if has_engine or self.is_fsdp_enabled
            else self.accelerator.prepare_model(model, evaluation_mode=True)
        )
        if self.is_fsdp_enabled:
            self.model = prepared
        if prepared is not self.model:
            self.model_wrapped = prepared
        if has_engine:
            self.deepspeed = self.model_wrapped
        return prepared

    def _announce_evaluation(self, dataloader: Any, description: str) -> None:
        logger.info(f"\n***** Running {description} *****")
        logger.info(
            f"  Num examples = {self.num_examples(dataloader)}"
            if has_length(dataloader)
            else "  Num examples: Unknown"
        )
        logger.info(f"  Batch size = {self.args.eval_batch_size}")
