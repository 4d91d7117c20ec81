"""What the installed releases can do, found by looking rather than by comparing versions."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import transformers

if TYPE_CHECKING:
    from collections.abc import Callable


def mentions(function: Callable[..., Any], name: str) -> bool:
    """Whether the body of an upstream `function` uses the attribute or global `name`."""
    return name in inspect.unwrap(function).__code__.co_names


HAS_TRAINING_SEAMS = hasattr(transformers.Trainer, "_prepare_for_training")
"""transformers 5 splits its training loop into methods; transformers 4 has it in one piece."""

EVALUATION_FILTERS_NAN_LOSSES = mentions(transformers.Trainer.evaluation_loop, "logging_nan_inf_filter")
"""transformers 5 leaves non-finite losses out of `eval_loss` when `logging_nan_inf_filter` is set."""

SCHEDULE_TAKES_BATCH_SIZE = (
    "total_train_batch_size" in inspect.signature(transformers.Trainer.set_initial_training_values).parameters
)
"""transformers 4 passes the total batch size in, and gets back whether training goes by epochs."""
