"""Inputs of the models of PPO, and their forward passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compat.trl.algorithms import ppo
from compat.trl.algorithms.policy_batches import response_mask
from compat.trl.core import logprobs_from_logits
from compat.trl.trainer.ppo_checks import check_step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from compat.fabric.accelerator import FabricAccelerator
    from compat.trl.trainer.ppo_config import PPOConfig
    from compat.trl.trainer.utils import RunningMoments

USES_PAD_TOKEN = {"input_ids": True, "attention_mask": False}
"""A model input → whether it is padded with the padding token; otherwise with zeros."""


def as_list(values: Any) -> Any:
    """Convert a column of newer `datasets` releases to a list; return other values unchanged."""
    return list(values) if type(values).__name__ == "Column" else values


def checked(
    device: torch.device,
    batch_size: int | None,
    queries: list[Tensor],
    responses: list[Tensor],
    scores: list[Tensor],
    masks: list[Tensor] | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor] | None]:
    """Check the arguments of `PPOTrainer.step` and move them to a device; scores become scalars."""
    queries, responses, scores = map(as_list, (queries, responses, scores))
    check_step(batch_size, queries=queries, responses=responses, scores=scores)

    def moved(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to(device) for tensor in tensors]

    scalars = [score.squeeze() for score in moved(scores)]
    return moved(queries), moved(responses), scalars, None if masks is None else moved(masks)


def shape_scores(scores: Tensor, config: PPOConfig, running: RunningMoments) -> Tensor:
    """Scale, normalize and clip scores with the options of a configuration.

    Args:
        scores: shape (batch size,).
        config: the configuration.
        running: the moments of all scores; updated if scores are scaled.
    """
    if config.use_score_scaling:
        running.update(scores)
        mean, std = (torch.as_tensor(moment).to(scores) for moment in (running.mean, running.std))
        scores = ppo.standardize_scores(scores, mean, std, subtract_mean=bool(config.use_score_norm))
    return scores if config.score_clip is None else ppo.clip_scores(scores, config.score_clip)


def collate(
    data_collator: Callable[[list[dict[str, Tensor]]], BatchEncoding],
    device: torch.device,
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
    is_encoder_decoder: bool,
) -> BatchEncoding:
    """Collate queries with their responses, or both separately for encoder-decoder models.

    Args:
        data_collator: pads sequences.
        device: the device of the result.
        queries: tokens, shape (query length,) each.
        responses: tokens, shape (response length,) each.
        is_encoder_decoder: whether queries are inputs of an encoder.

    Returns:
        `input_ids` and `attention_mask`, and `decoder_…` of both for encoder-decoder models.
    """

    def padded(texts: Sequence[Tensor]) -> BatchEncoding:
        batch = data_collator(
            [{"input_ids": text, "attention_mask": torch.ones_like(text)} for text in texts]
        )
        batch = batch.to(device)
        # Labels would make the model compute a language modeling loss.
        batch.pop("labels", None)
        return batch

    if not is_encoder_decoder:
        return padded([torch.cat(pair) for pair in zip(queries, responses, strict=False)])
    inputs, decoder = padded(queries), padded(responses)
    inputs.update({f"decoder_{name}": decoder[name] for name in USES_PAD_TOKEN})
    return inputs


def pad_across_processes(
    inputs: BatchEncoding, accelerator: FabricAccelerator, tokenizer: PreTrainedTokenizerBase
) -> BatchEncoding:
    """Pad model inputs to one length on all processes, in place."""
    for prefix in ("", "decoder_"):
        for name, is_token in USES_PAD_TOKEN.items():
            if prefix + name in inputs:
                inputs[prefix + name] = accelerator.pad_across_processes(
                    inputs[prefix + name],
                    dim=1,
                    pad_index=tokenizer.pad_token_id if is_token else 0,
                    pad_first=tokenizer.padding_side == "left",
                )
    return inputs


def forward_in_chunks(
    model: nn.Module,
    queries: list[Tensor],
    responses: list[Tensor],
    model_inputs: Mapping[str, Tensor],
    *,
    size: int,
    return_logits: bool,
    response_masks: list[Tensor] | None,
    is_encoder_decoder: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Run a model with a value head over a batch, `size` examples at a time.

    Returns:
        As `PPOTrainer.batched_forward_pass`: log-probabilities, logits or None, values, and response masks.
    """
    prefix = "decoder_" if is_encoder_decoder else ""
    chunks: list[tuple[Tensor, ...]] = []
    for start in range(0, len(queries), size):
        window = slice(start, start + size)
        inputs = {name: tensor[window] for name, tensor in model_inputs.items()}
        logits, _, values = model(**inputs)
        tokens, attention = inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"]
        chunk = (
            logprobs_from_logits(logits[:, :-1, :], tokens[:, 1:]),
            values[:, :-1],
            response_mask(
                attention,
                queries[window],
                responses[window],
                None if response_masks is None else response_masks[window],
                is_encoder_decoder=is_encoder_decoder,
            ),
        )
        chunks.append((*chunk, logits[:, :-1]) if return_logits else chunk)
    logprobs, all_values, masks, *all_logits = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return logprobs, all_logits[0] if all_logits else None, all_values, masks
