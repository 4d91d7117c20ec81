"""Checks of the arguments of `PPOTrainer`, and their errors and warnings."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from compat.trl.models import SUPPORTED_ARCHITECTURES
from compat.trl.trainer.ppo_config import PPOConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


def check_parts(
    config: object, model: object, ref_model: object, tokenizer: object, dataset: object, lr_scheduler: object
) -> None:
    """Check the types of the constructor's arguments.

    Raises:
        ValueError: an argument has a wrong type.
    """
    architectures = " or ".join(kind.__name__ for kind in SUPPORTED_ARCHITECTURES)
    wrong = (
        (isinstance(config, PPOConfig), f"config must be a PPOConfig, got {type(config)}."),
        (
            isinstance(tokenizer, PreTrainedTokenizerBase),
            "tokenizer must be a PreTrainedTokenizerBase like a PreTrainedTokenizer or a "
            f"PreTrainedTokenizerFast, got {type(tokenizer)}.",
        ),
        (
            isinstance(model, SUPPORTED_ARCHITECTURES),
            f"model must be a PreTrainedModelWrapper, got {type(model)} - supported architectures are: "
            f"{architectures}.",
        ),
        (
            ref_model is None or isinstance(ref_model, SUPPORTED_ARCHITECTURES),
            f"ref_model must be a PreTrainedModelWrapper or `None`, got {type(ref_model)} - supported "
            f"architectures are: {architectures}.",
        ),
        (
            dataset is None or isinstance(dataset, (torch.utils.data.Dataset, Dataset)),
            f"dataset must be a torch.utils.data.Dataset or datasets.Dataset, got {type(dataset)}.",
        ),
        (
            lr_scheduler is None or isinstance(lr_scheduler, LRScheduler),
            f"lr_scheduler must be a torch.optim.lr_scheduler.LRScheduler, got {type(lr_scheduler)}.",
        ),
    )
    for is_right, message in wrong:
        if not is_right:
            raise ValueError(message)


def check_query(query: object) -> None:
    """Check that a query is one sequence of tokens.

    Raises:
        ValueError: the query is not a tensor of shape (length,).
    """
    if isinstance(query, torch.Tensor):
        if query.dim() == 1:
            return
        got, way_out = str(tuple(query.shape)), "Take its rows: `list(query_tensor)`"
    else:
        got, way_out = str(type(query)), "Give `torch.tensor(...)`"
    msg = (
        "query_tensor must be a tensor of shape (`seq_len`) or a list of tensors of shape (`seq_len`) - got "
        f"{got}. {way_out}."
    )
    raise ValueError(msg)


def check_step(batch_size: int | None, **columns: object) -> None:
    """Check the arguments of `PPOTrainer.step`.

    Args:
        batch_size: the required number of examples; not checked if None.
        columns: `queries`, `responses` and `scores`.

    Raises:
        ValueError: a column is not a list of tensors, or has a wrong length; a score has several dimensions.
    """
    for name, tensors in columns.items():
        if not isinstance(tensors, list):
            msg = f"{name} must be a list of tensors - got {type(tensors)}. Give `list({name})`."
            raise ValueError(msg)  # noqa: TRY004 (TRL's)
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors[:1]):
            msg = f"Elements in {name} must be tensors - got {type(tensors[0])}. Give `torch.tensor(...)`."
            raise ValueError(msg)
        if batch_size is not None and len(tensors) != batch_size:
            msg = (
                f"Batch size ({batch_size}) does not match number of examples - but got {len(tensors)} "
                f"for: {name}. Give as many, or set `PPOConfig(batch_size={len(tensors)})`."
            )
            raise ValueError(msg)
        for score in tensors if name == "scores" else ():
            if score.dim() > 1:
                msg = f"Scores must be 1-dimensional - got {score.dim()} for {score}. Give one number each."
                raise ValueError(msg)


def check_hub_options(options: Mapping[str, object]) -> None:
    """Check `PPOConfig.push_to_hub_if_best_kwargs`.

    Raises:
        ValueError: there is no `repo_id`.
    """
    if "repo_id" not in options:
        msg = (
            "`push_to_hub_if_best_kwargs`: You have to specify repo_id in order to push the model to the "
            "hub! Give {'repo_id': ...}."
        )
        raise ValueError(msg)


def warn_of_missing_dataset(num_processes: int) -> None:
    """Warn the caller of the constructor that there is no dataset."""
    warnings.warn(
        "No dataset is provided. Make sure to set config.batch_size to the correct value before training.",
        UserWarning,
        stacklevel=3,
    )
    if num_processes > 1:
        warnings.warn(
            "No dataset is provided, and there are several processes: each would see the same data. Give "
            "a dataset, or take `trainer.accelerator.prepare(dataloader)` of your own dataloader.",
            UserWarning,
            stacklevel=3,
        )


def warn_of_single_clipping(max_grad_norm: float) -> None:
    """Warn the caller of `train_minibatch` that this update is not clipped."""
    warnings.warn(
        f"`max_grad_norm={max_grad_norm}`: as in TRL 0.7, gradients are clipped in the "
        "first update alone. To have them clipped in each, make a list of `trainer.model_params` "
        "before the first step: `trainer.model_params = list(trainer.model_params)`.",
        UserWarning,
        stacklevel=5,
    )


def warn_of_skipped_batch(ratio: float, threshold: float) -> None:
    """Warn the caller of `loss` that the losses are zero."""
    warnings.warn(
        f"The average ratio of batch ({ratio:.2f}) exceeds threshold {threshold:.2f}. Skipping batch.",
        UserWarning,
        stacklevel=3,
    )


def warn_of_negative_kl(kl: float) -> None:
    """Warn the caller of `record_step_stats` that the KL divergence is negative."""
    warnings.warn(
        f"KL divergence is starting to become negative: {kl:.2f} - this might be a precursor "
        "for failed training. Sometimes the generation kwargs are not correctly set: generate with "
        "nothing that changes probabilities (`top_k=0, top_p=1.0, do_sample=True`), or review the "
        "hyperparameters.",
        UserWarning,
        stacklevel=3,
    )


def warn_of_missing_texts() -> None:
    """Warn the caller of `log_stats` that there is no table of texts."""
    warnings.warn(
        "The game logs will not be logged because the batch does not contain the keys 'query' and "
        "'response'.",
        UserWarning,
        stacklevel=3,
    )
