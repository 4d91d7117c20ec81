from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import compat
from compat.errors import ArgumentError
from tests.small import Regression, arguments, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path

SAVING = {"save_strategy": "steps", "save_steps": 3}


class Plain(Regression):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.out(self.dropout(self.hidden(x)))
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}


@pytest.fixture
def compiled() -> tuple[Any, list[str]]:
    graphs: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    torch._dynamo.reset()
    return (lambda model: torch.compile(model, backend=backend)), graphs


def test_a_script_s_own_compiled_model(tmp_path: Path, compiled: Any) -> None:
    compile_, graphs = compiled
    data = [{**row, "extra": 1} for row in rows()]
    torch.manual_seed(0)
    expected = trainer(tmp_path / "plain", model=Plain(), train_dataset=data, **SAVING)
    expected.train()
    torch.manual_seed(0)
    model = Plain()
    run = trainer(tmp_path / "compiled", model=compile_(model), train_dataset=data, **SAVING)
    assert run.model is model
    run.train()
    assert graphs
    assert weights(run) == weights(expected)
    assert run.evaluate()["eval_loss"] == expected.evaluate()["eval_loss"]
    kept = load_file(tmp_path / "compiled" / "checkpoint-3" / "model.safetensors")
    assert kept.keys() == load_file(tmp_path / "plain" / "checkpoint-3" / "model.safetensors").keys()


def test_a_model_init_that_compiles(tmp_path: Path, compiled: Any) -> None:
    compile_, graphs = compiled
    run = compat.Trainer(
        model_init=lambda: compile_(Plain()),
        args=arguments(tmp_path),
        train_dataset=rows(),
        eval_dataset=rows(4),
    )
    assert type(run.model) is Plain
    run.train()
    assert graphs
    assert run.evaluate()["eval_loss"] > 0


def test_after_a_search_there_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    run = compat.Trainer(
        model_init=Regression,
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=rows(),
        eval_dataset=rows(4),
    )
    run.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3)}, n_trials=1
    )
    for call in (run.evaluate, lambda: run.predict(rows(4)), lambda: run.save_model(tmp_path / "model")):
        with pytest.raises(ArgumentError, match=r"after `hyperparameter_search` .*call `trainer.train\(\)`"):
            call()
    run.train()
    assert run.evaluate()["eval_loss"] > 0
