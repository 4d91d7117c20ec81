"""Evaluation and prediction: a pass over a dataloader in Lightning's loops."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import torch
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import has_length
from transformers.utils import logging

from compat.engine.evaluation import Evaluation
from compat.engine.loaders import require_equal_lengths
from compat.engine.nested import Validation, is_fitting, is_running, run_evaluation
from compat.engine.user_module import UserModuleEvaluation, is_user_module
from compat.errors import ArgumentError
from compat.trainer.component import Component

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    from torch import nn
    from transformers.trainer_utils import EvalLoopOutput

    from compat.engine.host import TrainerHost
    from compat.upstream.values import Loader

logger = logging.get_logger("transformers.trainer")

NO_MODEL = (
    "`model`: after `hyperparameter_search` the trainer has none, for each trial had its own. Set the "
    "`hyperparameters` of the best run in `trainer.args` and call `trainer.train()`, which makes one by "
    "`model_init`."
)

SPREADS_PARAMETERS = 3
"""The stage of ZeRO in which no process has the full model."""


class EvaluationRuns(Component):
    """Runs the passes of HF's `evaluate` and `predict` in Lightning's loops, which call HF's steps."""

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self._validation: Validation | None = None

    @contextlib.contextmanager
    def as_one_validation(self) -> Iterator[None]:
        """Show an evaluation of several passes to Lightning's callbacks as one validation."""
        built = self.hf._fit.built
        is_watched = built is not None and is_fitting(built) and built.callbacks  # type: ignore[attr-defined]
        if built is None or self._validation is not None or not is_watched:
            yield
            return
        self._validation = validation = Validation()
        try:
            yield
        finally:
            self._validation = None
        validation.finish(built)

    def run(
        self,
        dataloader: Loader,
        description: str,
        prediction_loss_only: bool | None,
        ignore_keys: list[str] | None,
        metric_key_prefix: str,
    ) -> EvalLoopOutput:
        """Run one pass over a dataloader.

        Args:
            dataloader: batches as HF's loaders make them.
            description: the name of the pass in the log.
            prediction_loss_only: whether only losses are kept; `args.prediction_loss_only` if None.
            ignore_keys: keys of the model's output to leave out.
            metric_key_prefix: prefix of every metric.

        Returns:
            What `transformers.Trainer.evaluation_loop` returns.
        """
        hf = self.hf
        if prediction_loss_only is None:
            prediction_loss_only = hf.args.prediction_loss_only
        stage = "predict" if description == "Prediction" else "val"
        dataloader = hf._fit.limited(dataloader, f"limit_{stage}_batches")
        require_equal_lengths(dataloader, hf.accelerator)
        model = self._prepare_model_for_evaluation(dataloader)
        self._announce_evaluation(dataloader, description)
        hf.callback_handler.eval_dataloader = dataloader
        kind = UserModuleEvaluation if is_user_module(hf.model) else Evaluation
        evaluation = kind(
            hf,
            model,
            description=description,
            prediction_loss_only=prediction_loss_only,
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
        )
        hf._forget_past()
        lightning, module = self._lightning_objects()
        run_evaluation(lightning, module, evaluation, dataloader, self._validation)
        # The past that `past_index` carried through the evaluation must not reach training.
        hf._forget_past()
        return evaluation.result(dataloader)

    def _lightning_objects(self) -> tuple[pl.Trainer, pl.LightningModule]:
        """Return a Lightning Trainer that can evaluate now: only `fit` can be interrupted for a pass."""
        hf = self.hf
        if is_running(hf.lightning) and not is_fitting(hf.lightning):
            return hf._fit.build(), hf._fit.make_module()
        return hf.lightning, hf.lightning_module

    def _prepare_model_for_evaluation(self, dataloader: Loader) -> nn.Module:
        hf = self.hf
        args = hf.args
        if hf.model is None:
            raise ArgumentError(NO_MODEL)
        if self._needs_inference_engine():
            deepspeed_init(hf, num_training_steps=0, inference=True)
        model: nn.Module = hf._wrap_model(hf.model, training=False, dataloader=dataloader)
        if len(hf.accelerator._models) == 0 and model is hf.model:
            start = time.time()
            model = self._prepare_model_alone(model)
            hf.model_preparation_time = round(time.time() - start, 4)
        if not hf.is_in_train:
            for asked, dtype in (
                (args.fp16_full_eval, torch.float16),
                (args.bf16_full_eval, torch.bfloat16),
            ):
                if asked:
                    return model.to(dtype=dtype, device=args.device)
        return model

    def _needs_inference_engine(self) -> bool:
        """Whether only a DeepSpeed engine can evaluate the model: ZeRO 3 has sharded it."""
        hf = self.hf
        if not hf.is_deepspeed_enabled or hf.deepspeed is not None:
            return False
        return bool(hf.accelerator.deepspeed_plugin.zero_stage == SPREADS_PARAMETERS)

    def _prepare_model_alone(self, model: nn.Module) -> nn.Module:
        """Have the accelerator prepare a model that is evaluated before training."""
        hf = self.hf
        has_engine = self._needs_inference_engine()
        prepared: nn.Module = (
            hf.accelerator.prepare(model)
            if has_engine or hf.is_fsdp_enabled
            else hf.accelerator.prepare_model(model, evaluation_mode=True)
        )
        if hf.is_fsdp_enabled:
            hf.model = prepared
        if prepared is not hf.model:
            hf.model_wrapped = prepared
        if has_engine:
            hf.deepspeed = hf.model_wrapped
        return prepared

    def _announce_evaluation(self, dataloader: Loader, description: str) -> None:
        hf = self.hf
        logger.info(f"\n***** Running {description} *****")
        logger.info(
            f"  Num examples = {hf.num_examples(dataloader)}"
            if has_length(dataloader)
            else "  Num examples: Unknown"
        )
        logger.info(f"  Batch size = {hf.args.eval_batch_size}")
