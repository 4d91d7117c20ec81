"""Tokens do not get from one checkpoint into another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import transformers

from compat.checkpoint.convert import convert
from compat.checkpoint.convert.secrets import without_secrets
from compat.checkpoint.layout import ARGUMENTS
from compat.checkpoint.manifest import MANIFEST
from compat.checkpoint.safe_unpickler import read_arguments
from tests.checkpoint.convert import harms
from tests.parity.record import isolated

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "hf_" + "abc" * 9


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of HF's own, whose arguments hold a token in three places."""
    folder = harms.hf(tmp_path / "checkpoint-7", 3)
    (folder / MANIFEST).unlink()
    with isolated():
        args = transformers.TrainingArguments(
            str(tmp_path), hub_token=TOKEN, gradient_accumulation_steps=2, report_to=[], use_cpu=True
        )
    args.lr_scheduler_kwargs = {"api_key": f"{TOKEN}2", "num_cycles": 2}
    args.again = TOKEN
    torch.save(args, folder / ARGUMENTS)
    assert TOKEN.encode() in (folder / ARGUMENTS).read_bytes()
    return folder


@pytest.mark.parametrize("target", ["x.ckpt", "checkpoint-8"])
def test_a_token_is_left_out(source: Path, tmp_path: Path, target: str) -> None:
    done = convert(source, tmp_path / target)
    assert f"tokens in {ARGUMENTS} left out" in str(done)
    convert(tmp_path / target, tmp_path / "back" / "checkpoint-7")
    for path in (tmp_path / target, tmp_path / "back"):
        for file in harms.files_of(path):
            assert TOKEN.encode() not in file.read_bytes()
    found, before = (
        read_arguments(str(place / ARGUMENTS)) for place in (tmp_path / "back" / "checkpoint-7", source)
    )
    assert found.pop("hub_token") is found.pop("again") is None
    assert found["lr_scheduler_kwargs"] == {"api_key": None, "num_cycles": 2}
    assert {name: before[name] for name in found if name != "lr_scheduler_kwargs"} == {
        name: value for name, value in found.items() if name != "lr_scheduler_kwargs"
    }
    loaded = torch.load(tmp_path / "back" / "checkpoint-7" / ARGUMENTS, weights_only=False)
    assert loaded.gradient_accumulation_steps == 2


def test_arguments_without_a_token_stay_byte_for_byte(tmp_path: Path) -> None:
    with isolated():
        torch.save(transformers.TrainingArguments(str(tmp_path), report_to=[]), tmp_path / ARGUMENTS)
    content = (tmp_path / ARGUMENTS).read_bytes()
    assert without_secrets(content) is content
    assert without_secrets(b"no archive") == b"no archive"
