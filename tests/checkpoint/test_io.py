from __future__ import annotations

import os
import re
from collections import deque
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from compat.checkpoint import LAYOUT, HFCheckpointIO
from compat.checkpoint.io import load_plain, save_plain, unloadable
from compat.errors import CheckpointError
from tests.small import trainer

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_has_one_file_a_part(tmp_path: Path) -> None:
    parts = {part.key: {"weight": torch.arange(3.0) + index} for index, part in enumerate(LAYOUT)}
    HFCheckpointIO().save_checkpoint(parts, tmp_path / "checkpoint-1")
    assert sorted(os.listdir(tmp_path / "checkpoint-1")) == sorted(part.file for part in LAYOUT)
    loaded = HFCheckpointIO().load_checkpoint(tmp_path / "checkpoint-1")
    assert {key: value["weight"].tolist() for key, value in loaded.items()} == {
        key: value["weight"].tolist() for key, value in parts.items()
    }


def test_only_the_parts_that_are_there_are_read(tmp_path: Path) -> None:
    HFCheckpointIO().save_checkpoint({"lr_scheduler": {"last_epoch": 3}}, tmp_path)
    assert HFCheckpointIO().load_checkpoint(tmp_path) == {"lr_scheduler": {"last_epoch": 3}}


def test_the_older_name_of_a_file_is_read(tmp_path: Path) -> None:
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    assert HFCheckpointIO().load_checkpoint(tmp_path) == {"optimizer": {"state": {}}}


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("hostile-was-here",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Hostile(), tmp_path / "optimizer.pt")
    with pytest.raises(Exception, match=r"it holds \w+\.mkdir, and a pickle of classes could run code"):
        HFCheckpointIO().load_checkpoint(tmp_path)
    assert not (tmp_path / "hostile-was-here").exists()


def test_a_file_is_a_plain_lightning_checkpoint(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    ours.train()
    ours.lightning.save_checkpoint(tmp_path / "plain.ckpt", weights_only=True)
    state = torch.load(tmp_path / "plain.ckpt", weights_only=True)["state_dict"]
    twin = nn.ModuleDict({"model": type(ours.model)()})
    twin.load_state_dict(state)
    assert torch.equal(twin["model"].out.weight, ours.model.out.weight)


def test_the_trainer_saves_through_it(tmp_path: Path) -> None:
    ours = trainer(tmp_path, save_strategy="steps", save_steps=3)
    ours.train()
    assert isinstance(ours.lightning.strategy.checkpoint_io, HFCheckpointIO)
    parts = HFCheckpointIO().load_checkpoint(tmp_path / "checkpoint-3")
    assert set(parts) == {"optimizer", "lr_scheduler"}
    assert parts["lr_scheduler"]["last_epoch"] == 3


class Projector:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix


def test_queues_and_known_classes_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"queue": deque([torch.ones(2), torch.zeros(2)], maxlen=3), "projector": Projector(torch.ones(1))}
    file = str(tmp_path / "optimizer.pt")
    save_plain(state, file)
    named = f"{__name__}.Projector (`projector`)"
    assert unloadable(file) == named
    with pytest.raises(CheckpointError, match=re.escape(f"it holds {named}, and a pickle of classes")):
        load_plain(file)
    monkeypatch.setattr("compat.checkpoint.io.PROJECTORS", ((__name__, "Projector"),))
    loaded = load_plain(file)
    assert isinstance(loaded["queue"], deque)
    assert (loaded["queue"].maxlen, [one.tolist() for one in loaded["queue"]]) == (3, [[1, 1], [0, 0]])
    assert loaded["projector"].matrix.tolist() == [1]
    # A Lightning file holds the same states.
    torch.save({"optimizer_states": [{"projector": Projector(torch.ones(1))}]}, tmp_path / "a.ckpt")
    of_lightning = HFCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert of_lightning["optimizer_states"][0]["projector"].matrix.tolist() == [1]
