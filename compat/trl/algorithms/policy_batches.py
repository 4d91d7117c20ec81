"""Batches of queries and responses: padding, ends of sequences and masks of response tokens.

Ziegler et al., Fine-Tuning Language Models from Human Preferences (2019, arXiv:1909.08593), train on the
tokens of responses only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import Tensor


def cut_at_end(response: Tensor, eos_token_id: int) -> Tensor:
    """Cut a response, shape (length,), after its first end-of-sequence token."""
    ends = (response == eos_token_id).nonzero()
    return response[: int(ends[0]) + 1] if len(ends) else response


def remove_left_padding(row: Tensor, attention: Tensor, *, keep_prompt: bool) -> Tensor:
    """Remove the padding, and optionally the prompt, from a generated sequence.

    Args:
        row: the padded prompt and its response, shape (length,).
        attention: one for tokens of the prompt, shape (padded prompt length,).
        keep_prompt: whether the prompt stays.
    """
    padding, prompt = int((1 - attention).sum()), int(attention.sum())
    return row[padding if keep_prompt else padding + prompt :]


def response_mask(
    attention: Tensor,
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
    response_masks: Sequence[Tensor] | None = None,
    *,
    is_encoder_decoder: bool = False,
) -> Tensor:
    """Mark the positions whose next token belongs to the response and is trained on.

    Args:
        attention: one for tokens of the sequences, or of the decoder; shape (batch size, length).
        queries: tokens, shape (query length,) each.
        responses: tokens, shape (response length,) each.
        response_masks: zero for response tokens without training, shape (response length,) each.
        is_encoder_decoder: whether the sequences are those of a decoder, without their queries.

    Returns:
        Ones and zeros, shape (batch size, length - 1).
    """
    masks = torch.zeros_like(attention[:, 1:])
    for row, (query, response) in enumerate(zip(queries, responses, strict=False)):
        if is_encoder_decoder:
            # The first token of the decoder is not predicted, and neither is the successor of the last one.
            start, end = 1, int(attention[row].sum()) - 1
            offset = start
        else:
            padding = int(attention[row].nonzero()[0])
            start, offset = padding + len(query) - 1, 0
            end = start + len(response)
        masks[row, start:end] = attention[row, 1:][start:end]
        if response_masks is not None:
            masks[row, start:end] *= response_masks[row][offset : offset + end - start]
    return masks


def minibatches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield the indices of each mini batch.

    Args:
        order: a permutation of the indices of the batch, shape (batch size,).
        size: examples per mini batch.
    """
    for start in range(0, len(order), size):
        yield order[start : start + size]
