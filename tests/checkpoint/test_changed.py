from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from compat.checkpoint.changed import changes
from tests.parity.parts.models import VOCABULARY, gpt2
from tests.small import rows, trainer

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


WORDS = ["?", "pad", "a", "b", "c"]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("`resume_from_checkpoint`")]


def test_resuming_says_from_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, **SAVING).train(resume_from_checkpoint="auto")
    folder = str(tmp_path)
    assert said(caplog) == [
        f"`resume_from_checkpoint`: 'auto' finds no checkpoint in {folder}; the run begins anew."
    ]
    caplog.clear()
    trainer(tmp_path, **{**SAVING, "max_steps": 9}).train(resume_from_checkpoint="auto")
    assert said(caplog) == [
        f"`resume_from_checkpoint`: going on from {folder}/checkpoint-4, update step 4 of 9, epoch 0.67 of 2."
    ]


def test_a_dataset_of_another_length_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, train_dataset=rows(12), **SAVING).train()
    trainer(tmp_path, train_dataset=rows(11), **SAVING).train(
        resume_from_checkpoint=f"{tmp_path}/checkpoint-2"
    )
    assert said(caplog)[1:] == [
        "`resume_from_checkpoint`: `train_dataset`: it has 11 rows, and 12 when the checkpoint was written: "
        "batches are not those of the uninterrupted run."
    ]


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, WORDS[0])
    tokens = {"unk_token": "?", "pad_token": "pad"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), **tokens)


def language(folder: Path, words: list[str], dropout: float = 0.0, max_steps: int = 4) -> Any:
    data = [{"input_ids": torch.arange(6) % VOCABULARY, "labels": torch.arange(6) % VOCABULARY}] * 8
    model = gpt2()
    model.config.attn_pdrop = dropout
    return trainer(
        folder,
        model=model,
        train_dataset=data,
        eval_dataset=data[:2],
        processing_class=tokenizer(words),
        **{**SAVING, "max_steps": max_steps},
    )


def test_a_tokenizer_and_a_configuration_that_differ_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    language(tmp_path, WORDS).train()
    checkpoint = f"{tmp_path}/checkpoint-2"
    language(tmp_path, WORDS).train(resume_from_checkpoint=checkpoint)
    assert len(said(caplog)) == 1
    caplog.clear()
    language(tmp_path, ["?", "pad", "b", "a", "c", "d"], dropout=0.5).train(resume_from_checkpoint=checkpoint)
    _, of_tokenizer, of_model = said(caplog)
    assert of_tokenizer == (
        "`resume_from_checkpoint`: `processing_class`: its vocabulary (6 tokens) is not that of the "
        "checkpoint (5 tokens): 'a' is token 3 and was token 2, 'b' is token 2 and was token 3, 'd' is "
        "token 5 and was none. The weights know the checkpoint's: load the tokenizer from there."
    )
    assert of_model == (
        "`resume_from_checkpoint`: `model.config`: it is not that of the checkpoint: "
        "`attn_pdrop` is 0.5 and was 0.0."
    )


class Slow(PreTrainedTokenizer):
    """A tokenizer written in Python, with one word a line in its file."""

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "words.txt"}

    def __init__(self, vocab_file: str, **options: Any) -> None:
        self.words = Path(vocab_file).read_text().split()
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {**{word: number for number, word in enumerate(self.words)}, **self.added_tokens_encoder}

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        (file := Path(save_directory) / "words.txt").write_text("\n".join(self.words))
        return (str(file),)


def slow(folder: Path, words: list[str], added: str) -> Slow:
    (file := folder / "source.txt").write_text("\n".join(words))
    made = Slow(str(file))
    made.add_tokens([added])
    return made


def test_slow_tokenizers_that_differ_are_said(tmp_path: Path) -> None:
    (checkpoint := tmp_path / "checkpoint-2").mkdir()
    slow(tmp_path, ["a", "b", "c"], "new").save_pretrained(checkpoint)
    assert not (checkpoint / "tokenizer.json").exists()
    same, other = slow(tmp_path, ["a", "b", "c"], "new"), slow(tmp_path, ["b", "a", "c"], "newer")
    assert list(changes(str(checkpoint), processing_class=same, config=None)) == []
    assert list(changes(str(checkpoint), processing_class=other, config=None)) == [
        "`processing_class`: its vocabulary (4 tokens) is not that of the checkpoint (4 tokens): 'a' is "
        "token 1 and was token 0, 'b' is token 0 and was token 1, 'new' is none and was token 3, and 1 more. "
        "The weights know the checkpoint's: load the tokenizer from there"
    ]
    (checkpoint / "words.txt").unlink()
    assert list(changes(str(checkpoint), processing_class=other, config=None)) == []


UNIGRAM = {"model": {"vocab": [["?", 0.0], ["pad", -1.0], ["a", -2.0]]}}


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps(UNIGRAM)])
def test_files_of_another_kind_are_no_difference(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "config.json").write_text(text)
    found = list(changes(str(tmp_path), processing_class=tokenizer(["?", "pad", "a"]), config=None))
    assert found == []
