"""Features of the installed releases, detected by inspection instead of by comparing versions."""

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


def names_in_order(function: Callable[..., Any], *names: str) -> bool:
    """Whether the body of an upstream `function` uses all `names`, first uses being in this order."""
    used = inspect.unwrap(function).__code__.co_names
    places = [used.index(name) for name in names if name in used]
    return len(places) == len(names) and places == sorted(places)


def has_local(function: Callable[..., Any], name: str) -> bool:
    """Whether the body of an upstream `function` has a local variable called `name`."""
    return name in inspect.unwrap(function).__code__.co_varnames


_LOOP = transformers.Trainer._inner_training_loop

OPTIMIZER_TAKES_MODEL = accepts(transformers.Trainer.create_optimizer, "model")
METRICS_FORMAT_IS_A_METHOD = accepts(transformers.Trainer.metrics_format, "self")
LENGTH_TAKES_BATCH_SIZE = accepts(transformers.Trainer.set_initial_training_values, "total_train_batch_size")
REPO_CAN_BE_PRIVATE = accepts(transformers.Trainer.init_hf_repo, "private")
PUSH_IS_AN_EVENT = hasattr(transformers.TrainerCallback, "on_push_begin")

HAS_TRAINING_SEAMS = hasattr(transformers.Trainer, "_prepare_for_training")
"""transformers 5.3 splits its training loop into methods; up to 5.2 it is one function."""

SHARES_SEQUENCES = HAS_TRAINING_SEAMS and hasattr(transformers.Trainer, "get_sp_size")
"""From 5.3 on the methods of training know of sequences that processes share."""

SHARES_CONTEXTS = hasattr(transformers.Trainer, "_prepare_context_parallel_inputs")
"""transformers 5 prepares a batch whose context processes share."""

ONE_PIECE_SEEDS_EARLY = names_in_order(_LOOP, "set_epoch", "on_epoch_begin")
"""Up to 4.57 that function sets the samplers' epoch before the epoch's callbacks; from 5.0 on, after them."""

ONE_PIECE_COUNTS_TOKENS_AHEAD = mentions(_LOOP, "num_tokens")
"""Up to 4.57 that function iterates over the data once beforehand, if it reports tokens per second."""

ONE_PIECE_FORGETS_SKIPPED = has_local(_LOOP, "steps_skipped")
"""Up to 4.56 that function counts the batches of a resumed epoch from the first one that it fetches."""

ONE_PIECE_MAKES_SCHEDULER_LAST = mentions(_LOOP, "create_scheduler")
"""In 5.1 and 5.2 that function makes the scheduler once the accelerator has prepared the optimizer."""

ONE_PIECE_MAKES_OPTIMIZER_LATE_FOR_TP = names_in_order(
    _LOOP, "is_tp_enabled", "create_optimizer_and_scheduler"
)
"""In 4.53 that function makes the optimizer of a tensor parallel model after the model has been prepared."""

ONE_PIECE_LEAVES_TP_MODEL = names_in_order(
    _LOOP, "create_optimizer_and_scheduler", "is_tp_enabled", "on_train_begin"
)
"""From 4.54 to 4.57 that function prepares nothing but the optimizer of a tensor parallel model."""

SEEDS_SHARDED_SAMPLERS = HAS_TRAINING_SEAMS and has_local(
    transformers.Trainer._run_epoch, "underlying_sampler"
)
"""From 5.17 on, the epoch is also set on a batch sampler that accelerate shards."""

EVALUATION_FILTERS_NAN_LOSSES = mentions(transformers.Trainer.evaluation_loop, "logging_nan_inf_filter")
"""transformers 5 omits non-finite losses from `eval_loss` when `logging_nan_inf_filter` is set."""

STORAGES_KNOW_THEIR_PLACE = hasattr(torch.UntypedStorage, "_checkpoint_offset")
"""From 2.7 on torch notes where in its file the data of a tensor lies that is read without its data."""

SCHEDULERS_THAT_WAIT: tuple[type, ...] = (
    torch.optim.lr_scheduler.ReduceLROnPlateau,
    *filter(None, (getattr(optimization, "GreedyLR", None),)),
)
"""Schedulers that HF steps with the metrics of an evaluation; `GreedyLR` came with transformers 5."""
