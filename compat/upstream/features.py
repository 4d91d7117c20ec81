"""What the installed releases can do, found by looking rather than by comparing versions."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import optimization

if TYPE_CHECKING:
    from collections.abc import Callable


def mentions(function: Callable[..., Any], name: str) -> bool:
    """Whether the body of an upstream `function` uses the attribute or global `name`."""
    return name in inspect.unwrap(function).__code__.co_names


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether an upstream `function` has a parameter called `name`."""
    return name in inspect.signature(function).parameters


OPTIMIZER_TAKES_MODEL = accepts(transformers.Trainer.create_optimizer, "model")
METRICS_FORMAT_IS_A_METHOD = accepts(transformers.Trainer.metrics_format, "self")
LENGTH_TAKES_BATCH_SIZE = accepts(transformers.Trainer.set_initial_training_values, "total_train_batch_size")
REPO_CAN_BE_PRIVATE = accepts(transformers.Trainer.init_hf_repo, "private")
PUSH_IS_AN_EVENT = hasattr(transformers.TrainerCallback, "on_push_begin")

HAS_TRAINING_SEAMS = hasattr(transformers.Trainer, "_prepare_for_training")
"""transformers 5 splits its training loop into methods; transformers 4 has it in one piece."""

EVALUATION_FILTERS_NAN_LOSSES = mentions(transformers.Trainer.evaluation_loop, "logging_nan_inf_filter")
"""transformers 5 leaves non-finite losses out of `eval_loss` when `logging_nan_inf_filter` is set."""

SCHEDULERS_THAT_WAIT: tuple[type, ...] = (
    torch.optim.lr_scheduler.ReduceLROnPlateau,
    *filter(None, (getattr(optimization, "GreedyLR", None),)),
)
"""Schedulers that HF steps with the metrics of an evaluation; `GreedyLR` came with transformers 5."""
