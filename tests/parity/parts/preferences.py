"""Small models of language, and the rows that trainers of preferences take."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[EOS]", "[BOS]", "<|im_start|>", "<|im_end|>", "user", "assistant")
MEANINGS = {f"{word[1:4].lower()}_token": word for word in SPECIAL[:4]}
WORDS = tuple(f"w{number}" for number in range(24))
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + ' ' + message['content'] }}"
    "{{ ' <|im_end|> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)

HEADS = {
    "causal": transformers.Qwen2ForCausalLM,
    "sequence": transformers.Qwen2ForSequenceClassification,
    "token": transformers.Qwen2ForTokenClassification,
}


def tokenizer(side: str = "right") -> Any:
    """Splits words, and knows turns.

    Args:
        side: where shorter rows are padded.
    """
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(WordLevel(vocabulary, unk_token=MEANINGS["unk_token"]))
    words.pre_tokenizer = WhitespaceSplit()
    return _speaking(words, side)


def bytewise() -> Any:
    """Splits bytes, of which it can tell the places in a text; knows turns."""
    pieces = (*SPECIAL, *sorted(ByteLevel.alphabet()))
    bytes_ = Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, merges=[]))
    bytes_.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bytes_.decoder = ByteLevelDecoder()
    return _speaking(bytes_, "right")


def _speaking(pieces: Tokenizer, side: str) -> Any:
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, padding_side=side, **MEANINGS)
    made.chat_template = TEMPLATE
    return made


@dataclass(frozen=True)
class Models:
    """Models of one kind that lie in folders, where trainers look for another copy of them.

    Args:
        folder: where they lie.
    """

    folder: Path

    def __call__(self, head: str = "causal", seed: int = 0, tokens: Any = None) -> Any:
        """A model of its own.

        Args:
            head: a key of `HEADS`.
            seed: of its weights.
            tokens: its tokenizer; one of words where None.
        """
        tokens = tokens or tokenizer()
        path = self.folder / f"{head}-{seed}-{len(tokens)}"
        if not path.exists():
            config = transformers.Qwen2Config(
                vocab_size=len(tokens),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                attention_dropout=0.1,
                num_labels=2 if head == "token" else 1,
                pad_token_id=0,
                eos_token_id=2,
                bos_token_id=3,
            )
            generator = torch.Generator().manual_seed(seed)
            model = HEADS[head](config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(0, 0.2, generator=generator)
            model.save_pretrained(path)
            tokens.save_pretrained(path)
        return HEADS[head].from_pretrained(path)


def rows(kind: str, count: int = 14, seed: int = 0) -> Dataset:
    """Rows of one kind.

    Args:
        kind: a key of `ROWS`.
        count: how many.
        seed: of their words.
    """
    draw = random.Random(seed)  # noqa: S311 (words, not secrets)

    def words() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 6)))

    return Dataset.from_list([ROWS[kind](words, number) for number in range(count)])


def _turn(role: str, words: str) -> list[dict[str, str]]:
    return [{"role": role, "content": words}]


ROWS: dict[str, Any] = {
    "text": lambda words, _: {"text": f"{words()} {words()}"},
    "chat": lambda words, _: {"messages": [*_turn("user", words()), *_turn("assistant", words())]},
    "completion": lambda words, _: {"prompt": words(), "completion": f" {words()}"},
    "pair": lambda words, _: {"prompt": words(), "chosen": f" {words()}", "rejected": f" {words()}"},
    "triple": lambda words, _: {
        "prompt": words(),
        "chosen": f" {words()}",
        "rejected": f" {words()}",
        "reference": f" {words()}",
    },
    "whole pair": lambda words, _: {"chosen": words(), "rejected": words()},
    "judged": lambda words, number: {
        "prompt": words(),
        "completion": f" {words()}",
        "label": bool(number % 3),
    },
    "steps": lambda words, number: {
        "prompt": words(),
        "completions": [words(), words()],
        "labels": [bool(number % 2), True],
    },
    "prompt": lambda words, _: {"prompt": words()},
    "question": lambda words, number: {
        "prompt": _turn("user", words()),
        "privileged_context": f"w{number}",
    },
}


def lengths(completions: list[Any], **_: Any) -> list[float]:
    """A reward: how long a completion is, in a circle."""
    return [float(len(str(one)) % 7) for one in completions]


def odd_lengths(completions: list[Any], **_: Any) -> list[float]:
    """A reward: whether a completion's length is odd."""
    return [float(len(str(one)) % 2) for one in completions]
