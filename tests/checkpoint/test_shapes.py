"""Files that can be read, and hold what they should not: one error, of the file and the entry."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compat.checkpoint.convert import convert
from compat.checkpoint.manifest import MANIFEST
from compat.checkpoint.selection import choose
from compat.checkpoint.verify import problems
from compat.errors import ArgumentError, CheckpointError
from tests.small import trainer

if TYPE_CHECKING:
    from pathlib import Path

SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trainer(folder, **SAVING).train()
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / MANIFEST).unlink()
        (checkpoint / "config.json").write_text("{}")
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A run whose newest checkpoint is there to be spoiled."""
    return shutil.copytree(saved, tmp_path / "run")


def assert_told(run: Path, name: str, told: str) -> None:
    """It is refused by its path, passed over with "auto", and not converted, with the same words."""
    newest = run / "checkpoint-4"
    (wrong,) = problems(newest)
    assert wrong == f"`{name}`: {told}"
    choice = choose("auto", run)
    assert choice.checkpoint == str(run / "checkpoint-2")
    assert wrong in choice.notes()[0]
    with pytest.raises(CheckpointError) as error:
        trainer(run, **SAVING).train(resume_from_checkpoint=str(newest))
    assert isinstance(error.value, ArgumentError)
    assert wrong in str(error.value)
    assert "Give an earlier one, or True for the newest whole one" in str(error.value)


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("global_step", -1, "-1, where a whole number from 0 on is wanted"),
        ("global_step", "4", '"4", where a whole number from 0 on is wanted'),
        ("global_step", None, "null, where a whole number from 0 on is wanted"),
        ("global_step", 1e400, "Infinity, where a whole number from 0 on is wanted"),
        ("global_step", 10**30, f"{10**30}, where a whole number from 0 on is wanted"),
        ("global_step", True, "true, where a whole number from 0 on is wanted"),
        ("epoch", float("nan"), "NaN, where a number from 0 on or null is wanted"),
        ("max_steps", [4], "a list, where a whole number from -1 on is wanted"),
        ("save_steps", "2", '"2", where a number from 0 on or null is wanted'),
        ("log_history", [1], "a list, where a list of objects or null is wanted"),
        ("best_metric", "low", '"low", where a number or null is wanted'),
        ("best_model_checkpoint", {}, "a dict, where text or null is wanted"),
        ("stateful_callbacks", "x" * 50, "a str, where an object or a list or null is wanted"),
    ],
)
def test_the_state_of_the_run(run: Path, entry: str, value: Any, told: str) -> None:
    file = run / "checkpoint-4" / "trainer_state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), entry: value}))
    assert_told(run, file.name, f"its entry `{entry}` is {told}")
    with pytest.raises(CheckpointError, match=rf"`trainer_state.json`: its entry `{entry}` is "):
        convert(run / "checkpoint-4", run / "x.ckpt")


def test_entries_that_are_missing_or_from_later(run: Path) -> None:
    file = run / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "of_tomorrow": 1}))
    later = "which the installed transformers does not know: a later release has written it"
    assert_told(run, file.name, f"its entry `of_tomorrow`, {later}")
    del state["global_step"]
    file.write_text(json.dumps(state))
    assert_told(run, file.name, "its entry `global_step` is missing")
    file.write_text("[]")
    assert_told(run, file.name, "a list, where entries by name are wanted")


@pytest.mark.parametrize("weights", [[1], 3, "x", None, {"a": 1}, {"a": None}])
def test_an_index(run: Path, weights: Any) -> None:
    name = "model.safetensors.index.json"
    (run / "checkpoint-4" / name).write_text(json.dumps({"weight_map": weights}))
    (wrong,) = problems(run / "checkpoint-4")
    assert wrong.startswith(f"`{name}`: no index of weights: its entry `weight_map` is ")
    (run / "checkpoint-4" / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=rf"{name}`: its entry `weight_map` is .*an object of texts is wanted"
    ):
        convert(run / "checkpoint-4", run / "x.ckpt")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "a list, where entries by name are wanted"),
        ("generation_config.json", "a list, where entries by name are wanted"),
        ("adapter_config.json", "a list, where entries by name are wanted"),
    ],
)
def test_configurations(run: Path, name: str, told: str) -> None:
    (run / "checkpoint-4" / name).write_text("[]")
    assert_told(run, name, told)
    (run / "checkpoint-4" / name).write_text('{"model_type": "be')
    assert problems(run / "checkpoint-4")[0].startswith(f"`{name}`: no JSON, or cut short (")
    with pytest.raises(CheckpointError, match=rf"`{name}`: no JSON, or cut short"):
        convert(run / "checkpoint-4", run / "x.ckpt")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("data_state.pth", [1], "a list, where entries by name are wanted"),
        ("data_state.pth", {"epoch": 1}, "its entry `batches` is missing"),
        (
            "data_state.pth",
            {"epoch": "1"},
            'its entry `epoch` is "1", where a whole number from 0 on is wanted',
        ),
        ("data_state.pth", {"order": 3}, "its entry `order` is 3, where states by name or null is wanted"),
        (
            "data_state.pth",
            {"depends_on": []},
            "its entry `depends_on` is a list, where states by name is wanted",
        ),
        ("rng_state.pth", {"python": 1}, "its entry `python` is 1, where a tuple of three is wanted"),
        ("scheduler.pt", 3, "a int, where entries by name are wanted"),
        (
            "lightning_callbacks.pth",
            {"callbacks": 1},
            "its entry `callbacks` is 1, where states by name is wanted",
        ),
        (
            "optimizer_extra.pth",
            {"groups": []},
            "its entry `groups` is a list, where states by name is wanted",
        ),
        ("scaler.pt", "x", "a str, where entries by name are wanted"),
    ],
)
def test_pickles(run: Path, name: str, value: Any, told: str) -> None:
    file = run / "checkpoint-4" / name
    needed = {"epoch": 0, "batches": 4, "is_over": False, "depends_on": {}}
    if name == "data_state.pth" and isinstance(value, dict) and "missing" not in told:
        value = {**needed, **value}
    torch.save(value, file)
    assert_told(run, name, told)


def test_what_is_well_is_told_nothing(saved: Path, run: Path) -> None:
    for checkpoint in saved.glob("checkpoint-*"):
        assert problems(checkpoint) == []
    file = run / "checkpoint-4" / "data_state.pth"
    # What a later release has added is left out.
    torch.save({**torch.load(file, weights_only=True), "of_tomorrow": 1}, file)
    again = trainer(run, **{**SAVING, "max_steps": 5})
    again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 5
