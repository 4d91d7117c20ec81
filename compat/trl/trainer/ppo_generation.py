"""Generation of responses to a list of queries."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from compat.trl.algorithms.policy_batches import cut_at_end, remove_left_padding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


def generate_in_batches(
    model: nn.Module,
    queries: list[Tensor],
    *,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    batch_size: int,
    length_sampler: Callable[[], int] | None,
    is_encoder_decoder: bool,
    return_prompt: bool,
    pad_to_multiple_of: int | None,
    remove_padding: bool,
    **generation_kwargs: object,
) -> list[Tensor]:
    """Generate a response to each query.

    Args:
        model: the unwrapped model.
        queries: tokens, shape (query length,) each.
        tokenizer: pads queries, on the left for decoder-only models.
        device: the device of the model's inputs.
        batch_size: queries per call of the model.
        length_sampler: draws the number of new tokens, once per call.
        is_encoder_decoder: whether sequences of the model lack their queries.
        return_prompt: whether responses of decoder-only models begin with their queries.
        pad_to_multiple_of: as in `tokenizer.pad`.
        remove_padding: whether responses end with their first end-of-sequence token.
        generation_kwargs: for the model's `generate`.

    Returns:
        Responses, shape (length,) each.
    """
    outputs: list[Tensor] = []
    with _padding_on(tokenizer.padding_side if is_encoder_decoder else "left", tokenizer):
        for start in range(0, len(queries), batch_size):
            if length_sampler is not None:
                generation_kwargs["max_new_tokens"] = length_sampler()
            chunk = queries[start : start + batch_size]
            inputs = tokenizer.pad(
                {"input_ids": chunk, "attention_mask": [torch.ones_like(query) for query in chunk]},
                padding=True,
                max_length=None,
                pad_to_multiple_of=pad_to_multiple_of,
                return_tensors="pt",
            ).to(device)
            generated = model.generate(**inputs, **generation_kwargs)  # type: ignore[operator]
            for row, mask in zip(generated, inputs["attention_mask"], strict=False):
                response = (
                    row if is_encoder_decoder else remove_left_padding(row, mask, keep_prompt=return_prompt)
                )
                outputs.append(cut_at_end(response, tokenizer.eos_token_id) if remove_padding else response)
    return outputs


@contextlib.contextmanager
def _padding_on(side: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Set the padding side of a tokenizer inside the block."""
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        yield
    finally:
        tokenizer.padding_side = before
