"""Each case that is trained on an XLA device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EVALUATED = {"eval_strategy": "steps", "eval_steps": 3}


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        options: arguments of the run.
        is_language_model: whether it trains a causal language model with tied weights, not a classifier.
        lengths: lengths of its rows, in turns.
        predicts: whether it predicts after training.
    """

    options: dict[str, Any] = field(default_factory=dict)
    is_language_model: bool = False
    lengths: tuple[int, ...] = (8,)
    predicts: bool = False


CASES = {
    "plain": Case(),
    "accumulation": Case({"gradient_accumulation_steps": 2}),
    "unclipped": Case({"max_grad_norm": 0.0}),
    "bf16": Case({"bf16": True}),
    "fp16": Case({"fp16": True}),
    "fp16_unclipped": Case({"fp16": True, "max_grad_norm": 0.0}),
    "evaluated": Case(EVALUATED, predicts=True),
    "best": Case({**EVALUATED, "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}),
    "epochs": Case(
        {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    ),
    "stopped": Case({"max_steps": 5, "logging_steps": 2, "save_steps": 2}),
    "smoothed": Case({"label_smoothing_factor": 0.1}, is_language_model=True),
    "ragged": Case(
        {**EVALUATED, "gradient_accumulation_steps": 2}, is_language_model=True, lengths=(5, 8, 6)
    ),
}
