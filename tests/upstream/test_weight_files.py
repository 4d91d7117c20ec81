"""The writing of safetensors files by transformers is offered to another function."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel, modeling_utils

from compat.upstream.weight_files import weight_files_taken_by

CONFIG = GPT2Config(
    n_layer=1, n_embd=8, n_head=1, vocab_size=8, n_positions=4, bos_token_id=0, eos_token_id=0
)


def test_what_is_taken_is_not_written(tmp_path: Path) -> None:
    taken: list[Any] = []
    with weight_files_taken_by(lambda *call: taken.append(call) or True):
        GPT2LMHeadModel(CONFIG).save_pretrained(tmp_path / "taken")
        safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    assert [Path(file).name for _, file, _ in taken] == ["model.safetensors", "plain.safetensors"]
    assert taken[0][2] == {"format": "pt"}
    assert not (tmp_path / "taken" / "model.safetensors").exists()
    assert (tmp_path / "taken" / "config.json").exists()


def test_what_is_not_taken_is_written_at_once(tmp_path: Path) -> None:
    with weight_files_taken_by(lambda *_: False):
        GPT2LMHeadModel(CONFIG).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_other_threads_write_their_own_files(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(CONFIG)
    with weight_files_taken_by(lambda *_: True):
        thread = threading.Thread(target=model.save_pretrained, args=(tmp_path,))
        thread.start()
        thread.join()
    assert (tmp_path / "model.safetensors").exists()


def test_it_ends_with_the_context() -> None:
    own = safetensors.torch.save_file
    with pytest.raises(ZeroDivisionError), weight_files_taken_by(lambda *_: bool(1 / 0)):
        safetensors.torch.save_file({}, "unwritten")
    assert modeling_utils.safe_save_file is safetensors.torch.save_file is own


def test_a_function_of_others_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        modeling_utils, "safe_save_file", lambda tensors, file, metadata=None: written.append(Path(file).name)
    )
    with weight_files_taken_by(lambda *_: True):
        GPT2LMHeadModel(CONFIG).save_pretrained(tmp_path)
    assert written == ["model.safetensors"]
