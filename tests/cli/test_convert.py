from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from compat.checkpoint.convert import FORMS
from compat.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}, folder / "model.safetensors")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "epoch": 1.0}))
    (folder / "config.json").write_text("{}")
    return folder


def test_the_last_line_says_what_was_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(source), str(tmp_path / "x.ckpt")]) == 0
    out, err = capsys.readouterr()
    size = (tmp_path / "x.ckpt").stat().st_size
    assert out == f"{tmp_path / 'x.ckpt'}: lightning, 2 tensors, {size:,} bytes, from hf\n"
    assert re.search(r"converting: 100%", err)
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert state["model.a"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_options_arrive(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--to", "pretrained", "--dtype", "bfloat16", "--max-shard-size", "13", "--quiet"]
    assert main(["convert", str(source), str(tmp_path / "checkpoint-4"), *words]) == 0
    out, err = capsys.readouterr()
    assert ": pretrained, 2 tensors" in out
    assert err == ""
    files = sorted((tmp_path / "checkpoint-4").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{at}-of-00002.safetensors" for at in (1, 2)]
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.bfloat16}
    assert main(["convert", str(source), str(tmp_path / "checkpoint-4"), *words, "--overwrite"]) == 0


def test_prefix_and_configuration_arrive(source: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"net.a": torch.ones(2), "other": torch.ones(3)}}, tmp_path / "run.ckpt")
    told = ["--prefix", "net", "--config", str(source / "config.json"), "--quiet"]
    assert main(["convert", str(tmp_path / "run.ckpt"), str(tmp_path / "final"), *told]) == 0
    assert set(load_file(tmp_path / "final" / "model.safetensors")) == {"a"}


def test_an_error_is_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(tmp_path / "x"), "--to", "deepspeed", "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(
        f"compat convert: `{tmp_path / 'x'}`: the form `deepspeed` is read and never written"
    )
    assert not (tmp_path / "x").exists()


def test_help_names_the_forms(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["convert", "--help"])
    out = capsys.readouterr().out
    assert all(re.search(rf"\b{form.name}\b", out) for form in FORMS if form.write)
