"""Collators for language modeling with completions, for reward pairs and for DPO triples.

`trl.trainer.utils` of TRL 0.7.11 has these names; `compat.trl.trainer.utils` re-exports them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForLanguageModeling

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


class DataCollatorForCompletionOnlyLM(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """Collates for language modeling with a loss on the answers only.

    Without `instruction_template`, the loss begins after the last response template of a sequence. Otherwise
    it covers the tokens between each response template and the next instruction template.

    Args:
        response_template: the text before an answer, or its token ids. Ids help if a tokenizer encodes the
            template differently inside a text.
        instruction_template: the text before a question, or its token ids.
        mlm: an argument of `transformers.DataCollatorForLanguageModeling`, like all further arguments.
        ignore_index: the label of tokens without a loss.
    """

    def __init__(
        self,
        response_template: str | list[int],
        instruction_template: str | list[int] | None = None,
        *args: object,
        mlm: bool = False,
        ignore_index: int = -100,
        **kwargs: object,
    ) -> None:
        super().__init__(*args, mlm=mlm, **kwargs)
        self.instruction_template = instruction_template
        self.instruction_token_ids = self._ids_of(instruction_template)
        self.response_template = response_template
        self.response_token_ids = self._ids_of(response_template)
        self.ignore_index = ignore_index
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if instruction_template and not self.mlm and pad == eos:
            warnings.warn(
                f"The pad_token_id and eos_token_id values of this tokenizer are identical ({eos}): no "
                "label is left for the end of a turn, and a model trained on several turns may go on "
                "asking and answering without end. Set `tokenizer.pad_token` to another token.",
                stacklevel=2,
            )

    def _ids_of(self, template: str | list[int] | None) -> Any:
        if isinstance(template, str):
            return self.tokenizer.encode(template, add_special_tokens=False)
        return template

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Collate examples, and mask the labels (batch, length) outside the answers.

        Warns:
            UserWarning: a sequence has no template; all of its labels are masked.
        """
        batch: dict[str, Any] = super().torch_call(examples)
        for labels, tokens in zip(batch["labels"], batch["input_ids"], strict=True):
            if self.instruction_template is None:
                self._keep_last_answer(labels, tokens)
            else:
                self._keep_all_answers(labels, tokens)
        return batch

    def _keep_last_answer(self, labels: torch.Tensor, tokens: torch.Tensor) -> None:
        found = self._find("response", labels, tokens)
        if found:
            labels[: found[-1] + len(self.response_token_ids)] = self.ignore_index

    def _keep_all_answers(self, labels: torch.Tensor, tokens: torch.Tensor) -> None:
        answers = [at + len(self.response_token_ids) for at in self._find("response", labels, tokens)]
        questions = self._find("instruction", labels, tokens)
        if answers and questions and questions[0] > answers[0]:
            questions = [0, *questions]
        # A system prompt before the first answer is also masked.
        for begin, end in zip([0, *questions[1:]], answers, strict=False):
            labels[begin:end] = self.ignore_index
        if len(questions) > len(answers):
            labels[questions[-1] :] = self.ignore_index

    def _find(self, kind: str, labels: torch.Tensor, tokens: torch.Tensor) -> list[int]:
        """Return the positions of a template; mask all labels if there is none."""
        template, ids = getattr(self, f"{kind}_template"), list(getattr(self, f"{kind}_token_ids"))
        row = labels.tolist()
        found = [i for i, first in enumerate(row) if first == ids[0] and row[i : i + len(ids)] == ids]
        if not found:
            warnings.warn(
                f"Could not find {kind} key `{template}` in the following instance: "
                f"{self.tokenizer.decode(tokens)} This instance will be ignored in loss calculation. If "
                "this happens often, increase the `max_seq_length`, or give the template as ids of tokens.",
                stacklevel=2,
            )
            labels[:] = self.ignore_index
        return found


@dataclass
class RewardDataCollatorWithPadding:
    """Pads pairs of a chosen and a rejected sequence, each side to its longest.

    Args:
        tokenizer: pads the sequences.
        padding: as in `tokenizer.pad`, like all further arguments.
        max_length: in tokens.
        pad_to_multiple_of: in tokens.
        return_tensors: the tensor type.
    """

    tokenizer: PreTrainedTokenizerBase
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate features with `input_ids_*` and `attention_mask_*` of both sides, optionally a `margin`.

        Returns:
            These four, of shape (batch, length), `return_loss`, and the margins (batch,) if the first
            feature has one.

        Raises:
            ValueError: a feature lacks one of the four.
        """
        sides = ("chosen", "rejected")
        names = [f"{part}_{side}" for side in sides for part in ("input_ids", "attention_mask")]
        missing = sorted({name for feature in features for name in names if name not in feature})
        if missing:
            msg = (
                f"The features should include {', '.join(f'`{name}`' for name in names)}; "
                f"{', '.join(missing)} is missing. Tokenize both sides, or give a `data_collator` of your "
                "own."
            )
            raise ValueError(msg)
        batch: dict[str, Any] = {}
        for side in sides:
            padded = self._pad(features, side)
            batch |= {f"{part}_{side}": padded[part] for part in ("input_ids", "attention_mask")}
        batch["return_loss"] = True
        if "margin" in features[0]:
            batch["margin"] = torch.tensor([feature["margin"] for feature in features], dtype=torch.float)
        return batch

    def _pad(self, features: list[dict[str, Any]], side: str) -> BatchEncoding:
        return self.tokenizer.pad(
            [{part: one[f"{part}_{side}"] for part in ("input_ids", "attention_mask")} for one in features],
            padding=self.padding,
            # transformers warns about a length that has no effect, that is, with any other padding.
            max_length=self.max_length if self.padding == "max_length" else None,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors=self.return_tensors,
        )


@dataclass
class DPODataCollatorWithPadding:
    """Pads tokenized triples of a prompt, a chosen and a rejected answer.

    Prompts of decoder-only models are padded on the left, all other sequences on the right.

    Args:
        pad_token_id: the padding value of inputs.
        label_pad_token_id: the padding value of labels.
        is_encoder_decoder: whether the model is an encoder-decoder.
    """

    pad_token_id: int = 0
    label_pad_token_id: int = -100
    is_encoder_decoder: bool | None = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate each key by its suffix.

        Returns:
            Tensors (batch, length) for keys that end in `_input_ids`, `_attention_mask` or `_labels`, tensors
            (batch,) for those that end in `_logps`, and lists for all others.

        Raises:
            ValueError: there is no padding token, or a key of an encoder-decoder model belongs to no part.
        """
        return {key: self._collate(key, [feature[key] for feature in features]) for key in features[0]}

    def _collate(self, key: str, rows: list[Any]) -> Any:
        if key.endswith(("_input_ids", "_attention_mask", "_labels")):
            fill = self._padding_of(key)
            tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
            if self.is_encoder_decoder or "prompt" not in key:
                return pad_sequence(tensors, batch_first=True, padding_value=fill)
            mirrored = pad_sequence([row.flip(0) for row in tensors], batch_first=True, padding_value=fill)
            return mirrored.flip(1)
        return torch.tensor(rows) if key.endswith("_logps") else rows

    def _padding_of(self, key: str) -> int:
        if key.endswith("_attention_mask"):
            return 0
        if self.is_encoder_decoder:
            is_read = key.startswith("prompt") and key.endswith("_input_ids")
            if not is_read and not key.startswith(("chosen", "rejected")) and "decoder" not in key:
                msg = f"Unexpected key in batch '{key}': it is of no prompt, chosen or rejected. Rename it."
                raise ValueError(msg)
        else:
            is_read = key.endswith("_input_ids")
        if not is_read:
            return self.label_pad_token_id
        if self.pad_token_id is None:
            msg = (
                "Padding is enabled, but the tokenizer is not configured with a padding token. Explicitly "
                "set `tokenizer.pad_token` (e.g. `tokenizer.pad_token = tokenizer.eos_token`) before "
                "calling the trainer."
            )
            raise ValueError(msg)
        return self.pad_token_id
