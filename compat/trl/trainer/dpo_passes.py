"""Forward passes and sampling with the policy and the reference of DPO."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from compat.trl.algorithms.dpo_tokens import pad_to_length

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def serves_windows(owner: Callable[[], type]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make `get_batch_samples` serve both of its meanings.

    TRL calls the method with a model and a batch. Newer releases of transformers call a method of the same
    name with an iterator, a number of batches and a device, to read an accumulation window.

    Args:
        owner: returns TRL's class; windows are read by its base class.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def either(self: Any, *args: object, **kwargs: object) -> Any:
            if len(args) + len(kwargs) > 2:  # noqa: PLR2004 (see above)
                return super(owner(), self).get_batch_samples(*args, **kwargs)  # type: ignore[arg-type,misc]
            return method(self, *args, **kwargs)

        return either

    return decorate


def logits(model: nn.Module, inputs: Mapping[str, Tensor], is_encoder_decoder: bool) -> Tensor:
    """Run a model on a concatenated batch.

    Args:
        model: the policy or the reference.
        inputs: the result of `dpo_tokens.concatenate_sides`, shape (2 * batch, length).
        is_encoder_decoder: whether the model also reads labels.

    Returns:
        Logits, shape (2 * batch, length, vocabulary).
    """
    options: dict[str, Any] = {}
    if is_encoder_decoder:
        options = {
            "labels": inputs["concatenated_labels"],
            "decoder_input_ids": inputs.get("concatenated_decoder_input_ids"),
        }
    outputs = model(
        inputs["concatenated_input_ids"],
        attention_mask=inputs["concatenated_attention_mask"],
        use_cache=False,
        **options,
    )
    found: Tensor = outputs.logits
    return found


def generate(
    model: PreTrainedModel, batch: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Tensor:
    """Continue the prompts of a batch by sampling.

    Args:
        model: the policy or the reference.
        batch: has `prompt_input_ids` and `prompt_attention_mask`, shape (batch, length).
        tokenizer: the tokenizer, which has the padding token.
        max_length: tokens of prompt and continuation.

    Returns:
        Tokens, shape (batch, length).
    """
    tokens: Tensor = model.generate(
        input_ids=batch["prompt_input_ids"],
        attention_mask=batch["prompt_attention_mask"],
        max_length=max_length,
        do_sample=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokens


def decode(tokens: Tensor, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    """Decode tokens, shape (batch, length), padded to `max_length`, without special tokens."""
    padded = pad_to_length(tokens, max_length, tokenizer.pad_token_id)
    texts: list[str] = tokenizer.batch_decode(padded, skip_special_tokens=True)
    return texts


def table(prompts: Sequence[str], *written: Sequence[str]) -> object:
    """Return a table of Weights & Biases with prompts and continuations.

    Args:
        prompts: the prompts.
        written: texts of the policy and of the reference, with their prompts.
    """
    import wandb

    rows = [
        [prompt, *(text[len(prompt) :] for text in texts)]
        for prompt, *texts in zip(prompts, *written, strict=True)
    ]
    return wandb.Table(columns=["Prompt", "Policy", "Ref Model"], rows=rows)
