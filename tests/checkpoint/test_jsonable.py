from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import TrainerState

from compat.checkpoint.jsonable import save_state
from compat.errors import ArgumentError
from tests.small import trainer

if TYPE_CHECKING:
    from pathlib import Path

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
EVALUATING = {**SAVING, "eval_strategy": "steps", "eval_steps": 2}

VALUES = {
    "f1": np.array([0.5, 0.25]),
    "zero": np.array(0.5),
    "single": np.float32(0.5),
    "tensor": torch.tensor([1, 2]),
    "half": torch.tensor([0.5], dtype=torch.bfloat16),
    "matrix": np.eye(2),
    "nested": {"per_class": [np.float64(1.5), {"a": torch.tensor(2.0)}]},
    "flag": np.bool_(True),
}
WRITTEN = {
    "eval_f1": [0.5, 0.25],
    "eval_zero": 0.5,
    "eval_single": 0.5,
    "eval_tensor": [1, 2],
    "eval_half": 0.5,
    "eval_matrix": [[1.0, 0.0], [0.0, 1.0]],
    "eval_nested": {"per_class": [1.5, {"a": 2.0}]},
    "eval_flag": True,
}


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_metrics_that_are_arrays_are_written_as_lists(tmp_path: Path) -> None:
    run = trainer(tmp_path, compute_metrics=lambda _: dict(VALUES), **EVALUATING)
    run.train()
    logged = read(tmp_path / "checkpoint-4" / "trainer_state.json")["log_history"]
    evaluated = [entry for entry in logged if "eval_loss" in entry]
    assert [{name: entry[name] for name in WRITTEN} for entry in evaluated] == [WRITTEN, WRITTEN]
    metrics = run.evaluate()
    # In memory they stay what the script made them, as under HF.
    assert isinstance(metrics["eval_f1"], np.ndarray)
    run.save_metrics("eval", metrics)
    run.save_state()
    for name in ("eval_results.json", "all_results.json"):
        assert {key: read(tmp_path / name)[key] for key in WRITTEN} == WRITTEN
    assert read(tmp_path / "trainer_state.json")["log_history"][-1]["eval_f1"] == [0.5, 0.25]


def test_a_run_with_such_metrics_resumes(tmp_path: Path) -> None:
    options = {**EVALUATING, "metric_for_best_model": "zero", "load_best_model_at_end": True}
    trainer(tmp_path, compute_metrics=lambda _: dict(VALUES), **options).train()
    state = read(tmp_path / "checkpoint-4" / "trainer_state.json")
    assert state["best_metric"] == 0.5
    run = trainer(tmp_path, compute_metrics=lambda _: dict(VALUES), **{**options, "max_steps": 6})
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 6


class Figure:
    pass


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ({"plot": Figure()}, r"'eval_plot', logged at step 2, is Figure"),
        ({"deep": [1.0, {"x": Figure()}]}, r"'eval_deep', logged at step 2,\[1\]\['x'\] is Figure"),
        ({"z": np.array([1j])}, r"'eval_z', logged at step 2,\[0\] is complex"),
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path: Path, metrics: dict[str, Any], named: str) -> None:
    run = trainer(tmp_path, compute_metrics=lambda _: dict(metrics), **EVALUATING)
    with pytest.raises(ArgumentError, match=named):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    (tmp_path / "eval_results.json").write_text("{}")
    with pytest.raises(ArgumentError, match="The metric 'plot' is Figure"):
        run.save_metrics("eval", {"plot": Figure()})
    assert read(tmp_path / "eval_results.json") == {}


@pytest.mark.parametrize("name", ["f1", "tensor"])
def test_the_best_of_an_array_is_asked_for(tmp_path: Path, name: str) -> None:
    run = trainer(tmp_path, compute_metrics=lambda _: dict(VALUES), **EVALUATING, metric_for_best_model=name)
    with pytest.raises(ArgumentError, match=f"`metric_for_best_model='{name}'`: the metric has 2 values"):
        run.train()


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 1)
        self.second = self.first

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.first(x) + self.second(x)
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}


@pytest.mark.filterwarnings("ignore:`save_safetensors` is an old name")
def test_tied_weights_of_a_plain_module_say_the_way_out(tmp_path: Path) -> None:
    options = dict(SAVING)
    with pytest.raises(
        ArgumentError,
        match=r"parameters of the Tied share memory \({.*second.weight.*Give `save_safetensors=False`",
    ):
        trainer(tmp_path, model=Tied(), **options).train()
    assert not list(tmp_path.glob("checkpoint-*"))
    run = trainer(tmp_path, model=Tied(), **SAVING, save_safetensors=False)
    run.train()
    expected = [value.tolist() for value in run.model.state_dict().values()]
    resumed = trainer(tmp_path, model=Tied(), **SAVING, save_safetensors=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [value.tolist() for value in resumed.model.state_dict().values()] == expected


@pytest.mark.parametrize(
    "log_history",
    [
        [],
        [{}],
        [
            {"step": 1, "loss": 0.1},
            {"step": 2, "loss": float("nan"), "a": None, "z": True, "ä": '"log_history": []\n'},
        ],
        [
            {"step": 1, "nested": {"b": [1, 2, {}], "a": "\n    x"}, "pair": (1, 2), "none": []},
            {"loss": 1e-30},
        ],
        [{"loss": np.float64(1 / 3)}, {3: "a key that is no text"}],
    ],
    ids=["no entry", "an empty entry", "flat", "nested", "keys and subclasses"],
)
def test_the_file_is_that_of_hf(log_history: list[dict[str, Any]], tmp_path: Path) -> None:
    state = TrainerState(
        global_step=3, best_model_checkpoint='"log_history": []', trial_params={"log_history": [], "a": [1]}
    )
    state.log_history = log_history
    state.save_to_json(str(tmp_path / "hf.json"))
    save_state(state, str(tmp_path / "ours.json"))
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "hf.json").read_bytes()


def test_a_state_with_a_format_of_its_own_writes_itself(tmp_path: Path) -> None:
    class Own(TrainerState):
        def save_to_json(self, json_path: str) -> None:
            (tmp_path / json_path).write_text("own")

    save_state(Own(), "state.json")
    assert (tmp_path / "state.json").read_text() == "own"
