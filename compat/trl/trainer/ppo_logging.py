"""Logs of PPO: tables of texts with their rewards, and coloured tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from compat.fabric.accelerator import FabricAccelerator


def gathered_columns(
    batch: Mapping[str, list[Any]], columns: list[str], is_distributed: bool
) -> list[list[Any]]:
    """Return columns of a batch, from all processes.

    Args:
        batch: name → values of the examples.
        columns: the names to return.
        is_distributed: whether there are several processes.

    Raises:
        ValueError: a column is missing.
    """
    if any(column not in batch for column in columns):
        msg = f"Columns to log {columns} are not present in the batch {list(batch)}. Give `columns_to_log`."
        raise ValueError(msg)
    texts = [batch[column] for column in columns]
    return [gather_object(column) for column in texts] if is_distributed else texts


def game_log(columns: Sequence[str], texts: Sequence[Iterable[Any]], rewards: Tensor) -> object:
    """Return a table of Weights & Biases with texts and rewards.

    Args:
        columns: the names of the columns.
        texts: the values of each column.
        rewards: shape (examples,).
    """
    import wandb

    rows = [list(row) for row in zip(*texts, rewards.cpu().tolist(), strict=False)]
    return wandb.Table(columns=[*columns, "reward"], rows=rows)


def averaged(stats: Mapping[str, Any], accelerator: FabricAccelerator) -> dict[str, Any]:
    """Average tensors over all processes; leave other values unchanged."""
    return {
        name: accelerator.reduce(value.to(accelerator.device), reduction="mean")
        if isinstance(value, torch.Tensor)
        else value
        for name, value in stats.items()
    }


def without_bfloat16(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Convert bfloat16 tensors to float32; trackers do not support bfloat16."""
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
        for name, value in stats.items()
    }


def show_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Tensor, masks: Tensor) -> None:
    """Print tokens, with a second colour for tokens whose mask is one.

    Args:
        tokenizer: decodes tokens.
        tokens: shape (length,).
        masks: one for tokens that are trained on, shape (length,).
    """
    from rich import print as show
    from rich.text import Text

    text = Text()
    for token, mask in zip(tokens, masks, strict=False):
        colour = "deep_sky_blue1" if mask == 1 else "cyan3"
        text.append(tokenizer.decode(token.item()), style=f"black on {colour}")
        text.append(" ")
    show(text)
