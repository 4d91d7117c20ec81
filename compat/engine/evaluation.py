"""HF's evaluation, one batch at a time, so that Lightning's evaluation loop can drive it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchmetrics import Metric, MetricCollection
from transformers import trainer as hf_trainer
from transformers.trainer_pt_utils import IterableDatasetShard
from transformers.trainer_utils import (
    EvalLoopOutput,
    EvalPrediction,
    has_length,
)

from compat.arguments.machine import XLA
from compat.engine.limits import LimitedLoader
from compat.engine.outputs import Gathering, make_container
from compat.engine.torchmetrics import TorchMetrics
from compat.errors import ArgumentError
from compat.upstream.devices import ask
from compat.upstream.features import EVALUATION_FILTERS_NAN_LOSSES
from compat.upstream.models import shifts_labels

if TYPE_CHECKING:
    from torch import nn

    from compat.engine.host import TrainerHost
    from compat.upstream.values import Batch, Loader, Output, Rows

KEPT = ("losses", "preds", "labels", "inputs")


class Evaluation:
    """One pass over an evaluation or prediction dataset.

    Mirrors the body of `transformers.Trainer.evaluation_loop`: `step` is one iteration of its loop, `result`
    the code after the loop.

    Args:
        hf: the HF Trainer.
        model: its model, prepared for evaluation.
        description: HF's name of the pass; "Prediction" keeps all outputs.
        prediction_loss_only: whether only losses are kept.
        ignore_keys: keys of the model's output to leave out.
        metric_key_prefix: prefix of every metric.
    """

    def __init__(
        self,
        hf: TrainerHost,
        model: nn.Module,
        *,
        description: str,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None,
        metric_key_prefix: str,
    ) -> None:
        self._hf = hf
        self._model = model
        self._prediction_loss_only = prediction_loss_only
        self._ignore_keys = ignore_keys
        self._prefix = metric_key_prefix
        self.logged: dict[str, float] = {}
        self.inputs: Batch = {}
        self.predicts = description == "Prediction"
        self._batch_size = hf.args.eval_batch_size
        self._observed = 0
        self._steps = 0
        self._metrics: dict[str, Any] | None = None
        self._torchmetrics = (
            TorchMetrics(hf.compute_metrics, shifts_labels=shifts_labels(hf.model))
            if isinstance(hf.compute_metrics, (Metric, MetricCollection))
            else None
        )
        how = {
            "concatenates": hf.args.eval_do_concat_batches,
            # On XLA, operations are executed with those that follow, and none follow the last batch.
            "joins_once": hf.args.device.type != XLA,
        }
        self._kept = {name: make_container(**how) for name in KEPT}
        self._gathering = Gathering(hf)
        # Lightning's loop runs without gradients; `prediction_step` decides whether a step computes them.
        self._grad_enabled = torch.is_grad_enabled()

    def set_eval_mode(self) -> None:
        """Put the model into eval mode, and the optimizer too if it has modes."""
        for part in (self._model, self._hf.optimizer):
            if callable(getattr(part, "eval", None)):
                part.eval()

    def step(self, inputs: Batch) -> tuple[Any, Any, Any]:
        """Evaluate one batch.

        Args:
            inputs: the batch as HF's collator made it.

        Returns:
            Loss, logits and labels, gathered from all processes; each may be None.
        """
        hf, args = self._hf, self._hf.args
        self.inputs = inputs
        self.observe(inputs)
        self._gathering.begin_batch()
        if self._steps == 0 and not self.predicts:
            hf._surprises.tell_of_evaluation(inputs)
        with torch.set_grad_enabled(self._grad_enabled):
            losses, logits, labels = hf.prediction_step(
                self._model, inputs, self._prediction_loss_only, ignore_keys=self._ignore_keys
            )
            kept_inputs = None
            if "inputs" in args.include_for_metrics:
                kept_inputs = hf._prepare_input(inputs[getattr(hf.model, "main_input_name", "input_ids")])
            hf.accelerator.mark_step()
            gathered = self._gather(losses, logits, labels, kept_inputs)
            self._keep(gathered)
            hf.control = hf.callback_handler.on_prediction_step(args, hf.state, hf.control)
            self._update_metrics(gathered, inputs)
        self._steps += 1
        return gathered["losses"], gathered["preds"], gathered["labels"]

    def observe(self, inputs: Batch) -> None:
        """Count the samples of a batch."""
        observed = hf_trainer.find_batch_size(inputs)
        if observed is None:
            return
        self._observed += observed
        if self._batch_size is None:
            self._batch_size = observed

    def _gather(self, losses: Output, logits: Output, labels: Output, inputs: Batch) -> dict[str, Any]:
        """Collect a step's outputs from all processes, padded to one length along dimension 1."""
        hf = self._hf
        gather, pad = self._gathering.gather, self._gathering.pad
        if losses is not None:
            losses = self.gather_losses(losses)
        if inputs is not None:
            inputs = gather(pad(inputs))
        if labels is not None:
            # Labels are padded before the logits, because `preprocess_logits_for_metrics` takes both.
            labels = pad(labels)
        if logits is not None:
            logits = pad(logits)
            if hf.preprocess_logits_for_metrics is not None:
                logits = hf.preprocess_logits_for_metrics(logits, labels)
            logits = gather(logits)
        if labels is not None:
            labels = gather(labels)
        return {"losses": losses, "preds": logits, "labels": labels, "inputs": inputs}

    def gather_losses(self, loss: torch.Tensor) -> torch.Tensor:
        """Collect the mean loss of a batch, once for each of its samples, from all processes."""
        losses: torch.Tensor = self._gathering.gather_repeated(loss, self._batch_size)
        return losses

    def _keep(self, gathered: dict[str, Any]) -> None:
        keeps_outputs = self.predicts or not (self._hf.args.batch_eval_metrics or self._torchmetrics)
        for name, value in gathered.items():
            if value is not None and (keeps_outputs or name == "losses"):
                self._kept[name].add(value)

    def _update_metrics(self, gathered: dict[str, Any], inputs: Batch) -> None:
        hf, args = self._hf, self._hf.args
        logits, labels = gathered["preds"], gathered["labels"]
        if self._torchmetrics is not None:
            if logits is not None and labels is not None:
                self._torchmetrics.update(logits, labels)
        elif args.batch_eval_metrics:
            if hf.compute_metrics is not None and logits is not None and labels is not None:
                losses = gathered["losses"] if "loss" in args.include_for_metrics else None
                extra = {
                    "losses": losses if losses is None else losses.contiguous(),
                    "inputs": inputs if "inputs" in args.include_for_metrics else None,
                }
                self._metrics = hf.compute_metrics(
                    EvalPrediction(predictions=logits, label_ids=labels, **extra),
                    compute_result=hf.accelerator.gradient_state.end_of_dataloader,
                )
            ask(args.device.type, "empty_cache")
            return
        every = args.eval_accumulation_steps
        if every is not None and (self._steps + 1) % every == 0:
            for container in self._kept.values():
                container.to_cpu_and_numpy()
            ask(args.device.type, "empty_cache")

    def result(self, dataloader: Loader) -> EvalLoopOutput:
        """Compute the metrics of the pass.

        Args:
            dataloader: the loader that was evaluated; the number of samples is read from its dataset.

        Returns:
            Predictions, labels, metrics with their prefix, and the number of samples.
        """
        hf = self._hf
        hf.gather_function = hf.accelerator.gather_for_metrics
        arrays = {name: container.get_arrays() for name, container in self._kept.items()}
        computed = self._compute_metrics(arrays)
        _check_metrics(computed, hf.compute_metrics)
        metrics = hf_trainer.denumpify_detensorize(computed)
        losses = arrays["losses"]
        if isinstance(losses, list) and losses:
            losses = np.concatenate(losses)
        if isinstance(losses, np.ndarray):
            metrics[f"{self._prefix}_loss"] = self._finite(losses).mean().item()
        metrics.update(self.logged)
        for name in ("jit_compilation_time", "model_preparation_time"):
            if hasattr(hf, name):
                metrics[f"{self._prefix}_{name}"] = getattr(hf, name)
        for key in list(metrics):
            if not key.startswith(f"{self._prefix}_"):
                metrics[f"{self._prefix}_{key}"] = metrics.pop(key)
        return EvalLoopOutput(
            predictions=arrays["preds"],
            label_ids=arrays["labels"],
            metrics=metrics,
            num_samples=self._count_samples(dataloader),
        )

    def _compute_metrics(self, arrays: dict[str, Any]) -> dict[str, Any]:
        hf, args = self._hf, self._hf.args
        if self._torchmetrics is not None:
            computed = self._torchmetrics.compute() if self._torchmetrics.update_called else {}
            self._torchmetrics.reset()
            return {
                name: value.tolist() if isinstance(value, torch.Tensor) else value
                for name, value in computed.items()
            }
        has_outputs = arrays["preds"] is not None and arrays["labels"] is not None
        if hf.compute_metrics is None or args.batch_eval_metrics or not has_outputs:
            return {} if self._metrics is None else self._metrics
        extra = {
            "losses": arrays["losses"] if "loss" in args.include_for_metrics else None,
            "inputs": arrays["inputs"] if "inputs" in args.include_for_metrics else None,
        }
        prediction = EvalPrediction(predictions=arrays["preds"], label_ids=arrays["labels"], **extra)
        computed_metrics: dict[str, Any] = hf.compute_metrics(prediction)
        return computed_metrics

    def _finite(self, losses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not (EVALUATION_FILTERS_NAN_LOSSES and self._hf.args.logging_nan_inf_filter):
            return losses
        finite = np.isfinite(losses)
        return losses[finite] if finite.any() else losses

    def _count_samples(self, dataloader: Loader) -> int:
        dataset: Rows = getattr(dataloader, "dataset", None)
        if isinstance(dataloader, LimitedLoader):
            samples = 0
        elif has_length(dataset):
            samples = len(dataset)
        elif isinstance(dataset, IterableDatasetShard) and getattr(dataset, "num_examples", 0) > 0:
            samples = dataset.num_examples
        elif has_length(dataloader):
            samples = self._hf.num_examples(dataloader)
        else:
            samples = self._observed
        return samples or self._observed


def _check_metrics(found: object, function: object) -> None:
    """Refuse what a script's `compute_metrics` returns if it has no names.

    Raises:
        ArgumentError: names the function and what it returned.
    """
    if not hasattr(found, "keys"):
        told = found if isinstance(found, (int, float, type(None))) else type(found).__name__
        name = getattr(function, "__name__", type(function).__name__)
        msg = (
            f"`compute_metrics={name}`: it returned {told}, where numbers by name are wanted. Return a dict "
            "such as {'accuracy': 0.9}."
        )
        raise ArgumentError(msg)
