"""Tiny models and a tokenizer, whose weights travel with the golden files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

FOLDER = Path(__file__).parents[1] / "golden" / "models"

TEXT = (
    "the film was a joy and the play was a bore",
    "### Human: how is the soup? ### Assistant: the soup is warm and good.",
    "a story about a small boat on a wide sea, told with care",
    "I would not see it again, and I would not pay for it.",
    "what a day! the sun is up, the bread is fresh and the road is long.",
    "<|im_start|>user question <|im_end|> <|im_start|>assistant answer <|im_end|>",
)
"""What the tokenizer has learnt its pieces from."""


def tokenizer() -> Any:
    """A byte-level tokenizer that reads any text; `<pad>`, `<s>` and `</s>` are its first three tokens."""
    return transformers.AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


def causal() -> Any:
    """A GPT-2 of two layers."""
    return transformers.GPT2LMHeadModel.from_pretrained(FOLDER / "causal")


def seq2seq() -> Any:
    """A T5 of two layers on each side."""
    return transformers.T5ForConditionalGeneration.from_pretrained(FOLDER / "seq2seq")


def classifier() -> Any:
    """A GPT-2 of two layers that scores a text by one number."""
    return transformers.GPT2ForSequenceClassification.from_pretrained(FOLDER / "classifier")


def make() -> None:
    """Draw the weights and write them, once."""
    import tokenizers

    words = tokenizers.ByteLevelBPETokenizer()
    words.train_from_iterator(TEXT * 4, vocab_size=352, special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    reader = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer,
        pad_token="<pad>",  # noqa: S106 (no password)
        bos_token="<s>",  # noqa: S106 (no password)
        eos_token="</s>",  # noqa: S106 (no password)
        unk_token="<unk>",  # noqa: S106 (no password)
        model_max_length=128,
    )
    reader.save_pretrained(FOLDER / "tokenizer")
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    size = len(reader)
    gpt2 = {"vocab_size": size, "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2, **dropout}
    wide = {"initializer_range": 0.2, **gpt2, **special}
    t5 = transformers.T5Config(
        vocab_size=size,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        initializer_factor=1.0,
        decoder_start_token_id=0,
        **special,
    )
    for seed, (name, kind, config) in enumerate(
        (
            ("causal", transformers.GPT2LMHeadModel, transformers.GPT2Config(**wide)),
            ("seq2seq", transformers.T5ForConditionalGeneration, t5),
            (
                "classifier",
                transformers.GPT2ForSequenceClassification,
                transformers.GPT2Config(num_labels=1, **wide),
            ),
        )
    ):
        torch.manual_seed(seed)
        kind(config).save_pretrained(FOLDER / name)
