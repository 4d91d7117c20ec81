"""Metrics, and what prepares their input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def distance(prediction) -> dict[str, Any]:
    """Mean absolute error, left as a numpy scalar: the Trainer has to make it plain."""
    return {"distance": np.abs(prediction.predictions - prediction.label_ids).mean()}


def accuracy(prediction) -> dict[str, Any]:
    """Share of right classes, over the labels that count."""
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    counts = prediction.label_ids != -100
    return {"accuracy": float((logits.argmax(-1) == prediction.label_ids)[counts].mean())}


def hit_rate(prediction) -> dict[str, Any]:
    """Share of right classes where `preprocess_logits_for_metrics` has chosen them already."""
    return {"hits": float((prediction.predictions == prediction.label_ids).mean())}


def generated_length(prediction) -> dict[str, Any]:
    """Mean count of tokens that are neither padding nor ignored."""
    return {"length": float((prediction.predictions > 0).sum(axis=-1).mean())}


def shapes(prediction) -> dict[str, Any]:
    """The number of batches that arrive where they are not joined."""
    return {"batches": len(prediction.predictions), "labels": len(prediction.label_ids)}


def everything(prediction) -> dict[str, Any]:
    """Sums over all that `include_for_metrics` can add."""
    return {
        "inputs": float(np.asarray(prediction.inputs).sum()),
        "losses": float(np.asarray(prediction.losses).sum()),
    }


def running_distance() -> Callable[..., dict[str, Any]]:
    """A metric for `batch_eval_metrics`: gathers batches until it is asked for the result."""
    errors: list[torch.Tensor] = []

    def compute(prediction, compute_result: bool) -> dict[str, Any]:
        errors.append((prediction.predictions - prediction.label_ids).abs())
        if not compute_result:
            return {}
        result = {"distance": torch.cat(errors).mean(), "batches": len(errors)}
        errors.clear()
        return result

    return compute


def choose(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The most likely class of each row, for `preprocess_logits_for_metrics`."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)
