"""Tiny text models and made-up text for the libraries that train embeddings."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [first + vowel + last for first in "bdfgklmn" for vowel in "aeiou" for last in "rs"]
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
WIDTH = 16


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word, between the special ones of BERT."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk"]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(
        *((SPECIAL[name], vocabulary[SPECIAL[name]]) for name in ("sep", "cls"))
    )
    tokens = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=24, **tokens)


def saved_berts(folder: Path) -> Path:
    """Save a BERT in `encoder` and one that fills in masks in `masked`, with their tokenizer.

    Args:
        folder: where; it is returned.
    """
    config = BertConfig(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    for name, kind in (("encoder", BertModel), ("masked", BertForMaskedLM)):
        torch.manual_seed(3)
        kind(config).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return folder


def sentences(count: int, seed: int) -> list[str]:
    """Rows of 3 to 8 words."""
    draw = random.Random(seed)  # noqa: S311 (no secret)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 8))) for _ in range(count)]


def texts(columns: str, count: int = 14, seed: int = 0, **more: Any) -> Dataset:
    """A dataset of text.

    Args:
        columns: names of the columns of text.
        count: how many rows.
        seed: of the text.
        more: further columns, each a function of the number of the row.
    """
    made = {name: sentences(count, seed + place) for place, name in enumerate(columns.split())}
    return Dataset.from_dict(made | {name: [of(row) for row in range(count)] for name, of in more.items()})


def pairs(count: int = 14, seed: int = 0) -> Dataset:
    """What belongs together."""
    return texts("anchor positive", count, seed)


def triplets(count: int = 14, seed: int = 0) -> Dataset:
    """What belongs together, and what does not."""
    return texts("anchor positive negative", count, seed)


def scored(count: int = 14, seed: int = 0) -> Dataset:
    """Pairs with how alike they are, from 0 to 1."""
    return texts("first second", count, seed, score=lambda row: row * 5 % 7 / 7)


def classes(count: int = 14, seed: int = 0, kinds: int = 3) -> Dataset:
    """Pairs of one of several kinds."""
    return texts("first second", count, seed, label=lambda row: row % kinds)
