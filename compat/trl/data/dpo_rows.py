"""Tokenization of prompts with a chosen and a rejected answer, for `DPOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from compat.trl.algorithms.dpo_tokens import SIDES

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

Tokens = dict[str, list[int]]
"""`input_ids` and `attention_mask` of one text."""

PARTS = ("input_ids", "attention_mask")

TRUNCATIONS: dict[str, Callable[[int], slice]] = {
    "keep_start": lambda length: slice(None, length),
    "keep_end": lambda length: slice(-length, None),
}
"""A truncation mode → the remaining tokens of a long prompt."""


@dataclass(frozen=True)
class RowTokenizer:
    """Tokenizes the rows of a preference dataset.

    Attributes:
        tokenizer: the tokenizer of the model.
        is_encoder_decoder: whether an encoder reads the prompt.
        max_length: maximum tokens of prompt and answer together; for decoder-only models.
        max_prompt_length: tokens of a truncated prompt.
        max_target_length: maximum tokens of an answer; for encoder-decoder models.
        truncation_mode: a key of `TRUNCATIONS`; for decoder-only models.
        label_pad_token_id: the label of prompt tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    is_encoder_decoder: bool
    max_length: int
    max_prompt_length: int
    max_target_length: int | None
    truncation_mode: str
    label_pad_token_id: int

    @classmethod
    def of(cls, trainer: object) -> RowTokenizer:
        """Build a row tokenizer from the attributes of the same names of a trainer."""
        return cls(**{field.name: getattr(trainer, field.name) for field in fields(cls)})

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Tokenize a row for `datasets.Dataset.map`."""
        return self.tokenize(row, self.split)

    def tokenize(
        self,
        row: dict[str, Any],
        split: Callable[[str, str], dict[str, list[int]]],
        model: PreTrainedModel | None = None,
    ) -> dict[str, Any]:
        """Tokenize a row.

        Args:
            row: a row with the texts `prompt`, `chosen` and `rejected`.
            split: `build_tokenized_answer`.
            model: an encoder-decoder model; makes decoder inputs from labels.

        Returns:
            `prompt_input_ids` and `prompt_attention_mask`, and `_labels` of each side; for decoder-only
            models also `_input_ids` and `_attention_mask` of prompt and answer together.

        Raises:
            ValueError: a column is not a text; the two prompts differ in more than their last token.
        """
        if self.is_encoder_decoder:
            return self._for_encoder(row, model)
        for name in ("prompt", *SIDES):
            if not isinstance(row[name], str):
                msg = f"{name} should be an str but got {type(row[name])}. Make it a text."
                raise ValueError(msg)  # noqa: TRY004 (TRL's)
        answers = {side: split(row["prompt"], row[side]) for side in SIDES}
        prompts: dict[str, Tokens] = {
            side: {part: tokens[f"prompt_{part}"] for part in PARTS} for side, tokens in answers.items()
        }
        shortest = _shared_length(*(prompt["input_ids"] for prompt in prompts.values()))
        # The tokenizer may merge the prompt's last token with the answer; generation begins before it.
        alone = self.tokenizer(row["prompt"], add_special_tokens=False)
        prompts["prompt"] = {part: alone[part][:shortest] for part in PARTS}
        # Other columns of the tokenizer are passed on unchanged.
        rest = {f"prompt_{part}": values[:shortest] for part, values in alone.items() if part not in PARTS}
        return rest | self._fitted({side: self._begun(tokens) for side, tokens in prompts.items()}, answers)

    def _begun(self, prompt: Tokens) -> Tokens:
        return _joined(self._special("bos"), prompt)

    def _special(self, name: str) -> Tokens:
        token = getattr(self.tokenizer, f"{name}_token_id")
        return (
            {part: [] for part in PARTS} if token is None else {"input_ids": [token], "attention_mask": [1]}
        )

    def _fitted(self, prompts: dict[str, Tokens], answers: dict[str, Any]) -> dict[str, Any]:
        """Truncate prompts, then answers, and concatenate them."""
        ended = {
            side: _joined({part: answers[side][part] for part in PARTS}, self._special("eos"))
            for side in SIDES
        }
        longest = max(len(answer["input_ids"]) for answer in ended.values())

        def is_too_long(prompt: Tokens) -> bool:
            return len(prompt["input_ids"]) + longest > self.max_length

        prompts = {side: self._cut(one) if is_too_long(one) else one for side, one in prompts.items()}
        room = slice(self.max_length - self.max_prompt_length)
        found: dict[str, Any] = {}
        for side in SIDES:
            prompt, answer = prompts[side], ended[side]
            if is_too_long(prompt):
                answer = {part: values[room] for part, values in answer.items()}
            whole = _joined(prompt, answer)
            found |= {f"{side}_{part}": values for part, values in whole.items()}
            masked = [self.label_pad_token_id] * len(prompt["input_ids"])
            found[f"{side}_labels"] = [*masked, *answer["input_ids"]]
        return found | {f"prompt_{part}": values for part, values in prompts["prompt"].items()}

    def _cut(self, prompt: Tokens) -> Tokens:
        if self.truncation_mode not in TRUNCATIONS:
            msg = (
                f"Unknown truncation mode: {self.truncation_mode}. `truncation_mode` is one of "
                f"{[*TRUNCATIONS]}."
            )
            raise ValueError(msg)
        kept = TRUNCATIONS[self.truncation_mode](self.max_prompt_length)
        return {part: values[kept] for part, values in prompt.items()}

    def split(self, prompt: str, answer: str) -> dict[str, list[int]]:
        """Tokenize a prompt and its answer as one text, and split the tokens.

        Args:
            prompt: the prompt.
            answer: the answer.

        Returns:
            `prompt_input_ids` and `prompt_attention_mask`, and `input_ids` and `attention_mask` of the
            answer. A merged token belongs to the answer.

        Raises:
            ValueError: both together have fewer tokens than the prompt.
        """
        whole = self.tokenizer(prompt + answer, add_special_tokens=False)
        alone = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        border = len(alone)
        if border > len(whole["input_ids"]):
            msg = (
                "Prompt input ids and answer input ids should have the same length as the tokens of both: "
                f"the prompt has {border} and both have {len(whole['input_ids'])}. End the prompt at a "
                "word's end."
            )
            raise ValueError(msg)
        if whole["input_ids"][:border] != alone:
            border -= 1
        return {
            **{f"prompt_{part}": whole[part][:border] for part in PARTS},
            **{part: whole[part][border:] for part in PARTS},
        }

    def _for_encoder(self, row: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
        def read(name: str, length: int | None) -> BatchEncoding:
            return self.tokenizer(row[name], truncation=True, max_length=length, add_special_tokens=True)

        found = {f"{side}_labels": read(side, self.max_target_length)["input_ids"] for side in SIDES}
        prompt = read("prompt", self.max_prompt_length)
        found |= {f"prompt_{part}": prompt[part] for part in PARTS}
        if hasattr(model, "prepare_decoder_input_ids_from_labels"):
            for side in reversed(SIDES):
                labels = torch.tensor([found[f"{side}_labels"]])
                inputs = model.prepare_decoder_input_ids_from_labels(labels=labels)
                found[f"{side}_decoder_input_ids"] = inputs[0].tolist()
        return found


def _joined(first: Tokens, second: Tokens) -> Tokens:
    return {part: [*first[part], *second[part]] for part in PARTS}


def _shared_length(chosen: list[int], rejected: list[int]) -> int:
    """Return the length of the shorter one of two tokenizations; they may differ in the last token."""
    differing = sum(one != other for one, other in zip(chosen, rejected, strict=False))
    if differing > 1 or abs(len(chosen) - len(rejected)) > 1:
        msg = (
            "Chosen and rejected prompt_input_ids might only differ on the last token due to tokenizer "
            f"merge ops. Here {differing} tokens differ, of {len(chosen)} and {len(rejected)}. End the "
            "prompt at a word's end."
        )
        raise ValueError(msg)
    return min(len(chosen), len(rejected))
