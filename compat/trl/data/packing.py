"""Packing: tokenized texts are concatenated and cut into sequences of one length.

`trl.trainer.utils` of TRL 0.7.11 has this name; `compat.trl.trainer.utils` re-exports it.
"""

from __future__ import annotations

import inspect
import random
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class ConstantLengthDataset(IterableDataset):  # type: ignore[type-arg]
    """Concatenates tokenized texts and cuts them into sequences of one length; drops a shorter remainder.

    Args:
        tokenizer: tokenizes batches of texts.
        dataset: the rows.
        dataset_text_field: the column with the text, if there is no `formatting_func`.
        formatting_func: returns the text of a row.
        infinite: whether to restart at the end, with a warning.
        seq_length: tokens per sequence.
        num_of_sequences: the approximate number of sequences per buffer.
        chars_per_token: an estimate for the number of characters per buffer.
        eos_token_id: the token between texts, if the tokenizer has none.
        shuffle: whether to shuffle each buffer with Python's `random`.
        append_concat_token: whether to put a token between texts.
        add_special_tokens: whether the tokenizer adds special tokens to each text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        dataset_text_field: str | None = None,
        formatting_func: Callable[[Any], str] | None = None,
        infinite: bool = False,
        seq_length: int = 1024,
        num_of_sequences: int = 1024,
        chars_per_token: float = 3.6,
        eos_token_id: int = 0,
        shuffle: bool = True,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            warnings.warn(
                f"The passed tokenizer does not have an EOS token: `eos_token_id={eos_token_id}` stands in "
                "for it. Pass the right id if that is another one.",
                stacklevel=2,
            )
        self.concat_token_id = tokenizer.eos_token_id or eos_token_id
        self.dataset = dataset
        self.seq_length = seq_length
        self.infinite = infinite
        self.current_size = 0
        self.max_buffer_size = seq_length * chars_per_token * num_of_sequences
        self.shuffle = shuffle
        self.append_concat_token = append_concat_token
        self.add_special_tokens = add_special_tokens
        if formatting_func is None:
            self.formatting_func: Callable[[Any], str] = lambda row: row[dataset_text_field]
        else:
            self.formatting_func = formatting_func
            if _positional_parameters(formatting_func) > 1:
                warnings.warn(
                    "The passed formatting_func has more than one argument: it is called with one row and "
                    "nothing else. Give the others defaults, or take them away.",
                    stacklevel=2,
                )

    def __len__(self) -> int:
        """Return the number of rows, not of sequences."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield `input_ids` and equal `labels`, each (seq_length,)."""
        texts = self._texts()
        while buffer := self._read(texts):
            for sequence in self._pack(buffer):
                self.current_size += 1
                yield {"input_ids": torch.tensor(sequence), "labels": torch.tensor(sequence)}

    def _texts(self) -> Iterator[str]:
        while True:
            is_empty = True
            for row in self.dataset:
                is_empty = False
                yield self.formatting_func(row)
            if not self.infinite or is_empty:
                return
            warnings.warn("The dataset reached end and the iterator is reset to the start.", stacklevel=2)

    def _read(self, texts: Iterator[str]) -> list[str]:
        buffer: list[str] = []
        size = 0
        for text in texts:
            buffer.append(text)
            size += len(text)
            if size >= self.max_buffer_size:
                break
        return buffer

    def _pack(self, buffer: list[str]) -> list[list[int]]:
        tokenized = self.tokenizer(buffer, add_special_tokens=self.add_special_tokens, truncation=False)
        between = [self.concat_token_id] if self.append_concat_token else []
        stream = [token for ids in tokenized["input_ids"] for token in (*ids, *between)]
        whole = len(stream) - len(stream) % self.seq_length
        sequences = [stream[at : at + self.seq_length] for at in range(0, whole, self.seq_length)]
        if self.shuffle:
            random.shuffle(sequences)
        return sequences


def _positional_parameters(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds for one in inspect.signature(function).parameters.values())
