"""torchmetrics metrics as `compute_metrics`: updated with each batch, so that outputs do not accumulate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torchmetrics import Metric, MetricCollection

from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compat.upstream.values import Output

CLASSES_SECOND = "torchmetrics.classification."
"""The package of metrics that take classes as the second dimension; HF's models return them as the last."""

NUMBERS = "torchmetrics.regression."
"""The package of metrics that compare numbers."""

WRAPPED = ("_base_metric", "base_metric", "metric", "metrics", "metric_a", "metric_b")
"""Attributes in which wrapper metrics keep the metrics that they wrap."""

PADDING = -100


class TorchMetrics:
    """A metric, or a collection of them.

    Predictions and labels are laid out as the metrics take them: the labels of a causal model are shifted by
    one token, as in its loss, and metrics of `torchmetrics.classification` receive logits of shape (batch,
    tokens, classes) as (batch, classes, tokens).

    Args:
        metric: the value of `compute_metrics`.
        shifts_labels: whether the model predicts at each token the label of the next one.
    """

    def __init__(self, metric: Metric | MetricCollection, *, shifts_labels: bool) -> None:
        self._collection = metric if isinstance(metric, MetricCollection) else MetricCollection([metric])
        self._shifts_labels = shifts_labels
        self.update_called = False

    def update(self, logits: Output, labels: Output) -> None:
        """Update the metrics with a batch.

        Args:
            logits: (batch, …), or (batch, tokens, classes); the result of `preprocess_logits_for_metrics` if
                it is set.
            labels: (batch, …), or (batch, tokens).

        Raises:
            ArgumentError: the model returns several outputs, or a metric does not accept them.
        """
        self.update_called = True
        if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor):
            raise ArgumentError(self._several(logits, labels))
        if self._shifts_labels:
            logits, labels = shifted(logits, labels)
        metrics = dict(self._collection.items(keep_base=True, copy_state=False))
        for metric in metrics.values():
            metric.to(labels.device)
            # Outputs have been gathered from all processes already.
            metric.sync_on_compute = False
        laid_out = {name: _laid_out(metric, logits, labels) for name, metric in metrics.items()}
        try:
            self._update(metrics, laid_out, labels)
        except (ValueError, RuntimeError) as error:
            raise ArgumentError(self._refused(error, logits, labels)) from error

    def _update(
        self, metrics: Mapping[str, Metric], laid_out: Mapping[str, torch.Tensor], labels: torch.Tensor
    ) -> None:
        forms = {tuple(predictions.shape) for predictions in laid_out.values()}
        if len(forms) == 1:
            # All in one call: metrics of a collection may share a state.
            self._collection.update(next(iter(laid_out.values())), labels)
            return
        for name, metric in metrics.items():
            metric.update(laid_out[name], labels)

    def compute(self) -> dict[str, Any]:
        """Compute the metrics, by their names."""
        computed: dict[str, Any] = self._collection.compute()
        return computed

    def reset(self) -> None:
        """Reset the metrics."""
        self._collection.reset()

    @property
    def _name(self) -> str:
        metrics = self._collection.values(copy_state=False)
        return ", ".join(type(metric).__name__ for metric in metrics)

    def _several(self, logits: Output, labels: Output) -> str:
        given = {"predictions": logits, "labels": labels}
        parts = ", ".join(
            f"{len(value) if isinstance(value, (list, tuple, dict)) else type(value).__name__} {name}"
            for name, value in given.items()
            if not isinstance(value, torch.Tensor)
        )
        return (
            f"`compute_metrics={self._name}`: it takes a tensor of predictions and one of labels, and there "
            f"are {parts}. Choose one with `preprocess_logits_for_metrics`, or leave outputs out with "
            "`ignore_keys`; `label_names` says what the labels are."
        )

    def _refused(self, error: Exception, logits: torch.Tensor, labels: torch.Tensor) -> str:
        hint = "Have `preprocess_logits_for_metrics` make what it takes."
        ignores = all(map(_ignores, self._collection.values(copy_state=False)))
        if (labels == PADDING).any() and not ignores:
            hint = "Labels hold -100 where there is nothing to predict: give it `ignore_index=-100`. " + hint
        return (
            f"`compute_metrics={self._name}`: predictions of shape {tuple(logits.shape)} and labels of shape "
            f"{tuple(labels.shape)} are refused ({error}). {hint}"
        )


def shifted(predictions: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Align the predictions of a causal model with their labels.

    Args:
        predictions: (batch, tokens, …) of each token for the next one, or without those of the last token.
        labels: (batch, tokens).

    Returns:
        Both without positions that have no counterpart; unchanged if they are not per token.
    """
    by_token = predictions.dim() > 1 and labels.dim() > 1
    surplus = predictions.shape[1] - labels.shape[1] if by_token else None
    if surplus == 0:
        return predictions[:, :-1], labels[:, 1:]
    # `preprocess_logits_for_metrics` has removed the last position.
    return (predictions, labels[:, 1:]) if surplus == -1 else (predictions, labels)


def _laid_out(metric: Metric, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    has_one_more = predictions.dim() == labels.dim() + 1 and predictions.shape[:-1] == labels.shape
    if not has_one_more:
        return predictions
    if labels.dim() > 1 and _is_of(metric, CLASSES_SECOND):
        return predictions.movedim(-1, 1)
    # One number for each sample, as in the loss of such a model.
    is_squeezed = predictions.shape[-1] == 1 and _is_of(metric, NUMBERS)
    return predictions.squeeze(-1) if is_squeezed else predictions


def _is_of(metric: object, package: str) -> bool:
    """Whether a metric, or a metric that it wraps, is from a package of torchmetrics."""
    inner = [getattr(metric, name, None) for name in WRAPPED]
    metrics = [one for part in inner for one in (part if isinstance(part, Iterable) else [part])]
    wrapped = [one for one in metrics if isinstance(one, Metric)]
    if wrapped:
        return all(_is_of(one, package) for one in wrapped)
    return any(base.__module__.startswith(package) for base in type(metric).__mro__)


def _ignores(metric: Metric | MetricCollection) -> bool:
    return any(getattr(part, "ignore_index", None) is not None for part in metric.modules())
