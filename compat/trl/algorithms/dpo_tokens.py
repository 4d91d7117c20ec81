"""Batches of chosen and rejected answers as token tensors, and their log-probabilities.

Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward Model (2023,
arXiv:2305.18290), compare the log-probabilities of whole answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SIDES = ("chosen", "rejected")
"""The two answers of a pair, in the order of a concatenated batch."""


def pad_to_length(tensor: Tensor, length: int, pad_value: float, dim: int = -1) -> Tensor:
    """Pad one dimension at its end; tensors that are long enough do not change.

    Args:
        tensor: a tensor of any shape.
        length: the minimal size of `dim`.
        pad_value: the value of the new elements.
        dim: the dimension.

    Returns:
        The same tensor, or a longer one.
    """
    missing = length - tensor.size(dim)
    if missing <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, pad_value * tensor.new_ones(shape)], dim=dim)


def concatenate_sides(
    batch: Mapping[str, Any],
    is_encoder_decoder: bool,
    label_pad_token_id: int,
    padding_value: int,
    device: torch.device | None,
) -> dict[str, Tensor]:
    """Concatenate the chosen and the rejected side of a batch.

    Args:
        batch: the result of `DPODataCollatorWithPadding`; `chosen_…` and `rejected_…`, shape (batch, length).
        is_encoder_decoder: whether an encoder reads the prompts.
        label_pad_token_id: the padding value of labels.
        padding_value: the padding value of `input_ids`.
        device: the device of the result.

    Returns:
        `concatenated_…` for each key of the two sides, shape (2 * batch, length), chosen answers first.
    """
    kind = "labels" if is_encoder_decoder else "input_ids"
    length = max(batch[f"{side}_{kind}"].shape[1] for side in SIDES)

    def padded(key: str) -> Tensor:
        if "labels" in key or is_encoder_decoder:
            fill = label_pad_token_id
        else:
            fill = padding_value if key.endswith("_input_ids") else 0
        return pad_to_length(batch[key], length, pad_value=fill)

    found: dict[str, Tensor] = {}
    for key, values in batch.items():
        if key.startswith("chosen") and isinstance(values, torch.Tensor):
            other = key.replace("chosen", "rejected")
            together = torch.cat((padded(key), padded(other)), dim=0).to(device=device)
            found[key.replace("chosen", "concatenated")] = together
    if is_encoder_decoder:
        for part in ("input_ids", "attention_mask"):
            found[f"concatenated_{part}"] = batch[f"prompt_{part}"].repeat(2, 1).to(device=device)
    return found


def label_logprobs(
    logits: Tensor,
    labels: Tensor,
    average: bool,
    label_pad_token_id: int,
    is_encoder_decoder: bool,
) -> Tensor:
    """Sum, or average, the log-probabilities of the labels of each sequence.

    Args:
        logits: shape (batch, length, vocabulary).
        labels: shape (batch, length).
        average: whether to average over tokens.
        label_pad_token_id: the label of tokens without a log-probability.
        is_encoder_decoder: whether logits and labels are aligned; otherwise logits predict the next label.

    Returns:
        Log-probabilities, shape (batch,).

    Raises:
        ValueError: the shapes of logits and labels differ.
    """
    if logits.shape[:-1] != labels.shape:
        msg = (
            "Logits (batch and sequence length dim) and labels must have the same shape: they are "
            f"{tuple(logits.shape[:-1])} and {tuple(labels.shape)}. Pad both alike."
        )
        raise ValueError(msg)
    predicted, targets = (logits, labels) if is_encoder_decoder else (logits[:, :-1], labels[:, 1:])
    counts = targets != label_pad_token_id
    indices = targets.masked_fill(~counts, 0).unsqueeze(2)
    logps = predicted.log_softmax(-1).gather(2, indices).squeeze(2)
    total = (logps * counts).sum(-1)
    return total / counts.sum(-1) if average else total
