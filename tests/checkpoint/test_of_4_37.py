"""A checkpoint that transformers 4.37.2 has written, under numpy 1, with pickled weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compat.checkpoint.convert import convert
from compat.checkpoint.io import numpys_older_names
from compat.checkpoint.verify import problems
from tests.small import Regression, rows, trainer

RECORDED = Path(__file__).parent / "of_4_37"

OPTIONS = {
    "max_steps": 6,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 0.01,
}


def resumed(folder: Path, checkpoint: Path, kind: Any = None) -> Any:
    torch.manual_seed(9)
    run = trainer(folder, kind, model=Regression(), train_dataset=rows(16), **OPTIONS)
    run.train(resume_from_checkpoint=str(checkpoint))
    return {name: value.tolist() for name, value in run.model.state_dict().items()}


@pytest.mark.parametrize("converted", [False, True], ids=["as it is", "by way of Lightning"])
def test_it_is_resumed_as_by_hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: bool) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(RECORDED / "checkpoint-2", checkpoint)
    assert problems(checkpoint) == []
    if converted:
        checkpoint = tmp_path / "x.ckpt"
        convert(tmp_path / "checkpoint-2", checkpoint)
    # HF's own Trainer knows neither numpy's older names, nor how to save on from a state without callbacks.
    monkeypatch.setitem(OPTIONS, "save_strategy", "no")
    with numpys_older_names():
        expected = resumed(tmp_path / "theirs", RECORDED / "checkpoint-2", transformers.Trainer)
    monkeypatch.undo()
    assert resumed(tmp_path / "run", checkpoint) == expected
    assert problems(tmp_path / "run" / "checkpoint-6") == []
