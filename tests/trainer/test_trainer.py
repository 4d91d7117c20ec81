from __future__ import annotations

import ast
import copy
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import compat
from compat.engine import host
from compat.errors import ArgumentError
from compat.trainer.component import Component
from compat.trainer.components import fit
from tests.small import Regression, arguments, rows, trainer, weights

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


def test_between_our_trainer_and_hf_s_are_at_most_four_classes() -> None:
    kinds = compat.Trainer.__mro__
    assert len(kinds) <= 7
    between = kinds[1 : kinds.index(transformers.Trainer)]
    assert len(between) <= 4
    floors = Counter(
        name
        for kind in kinds
        if kind.__module__.startswith("compat.")
        for name in vars(kind)
        if name in vars(transformers.Trainer) and not name.startswith("__")
    )
    assert floors
    assert max(floors.values()) == 1, floors.most_common(3)


def test_components_do_not_know_each_other() -> None:
    folder = Path(fit.__file__).parent
    names = {file.stem for file in folder.glob("*.py")}
    assert "shutdown" in names
    for file in folder.glob("*.py"):
        imported = {
            node.module or ""
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        }
        assert not {one for one in imported if one.startswith("compat.trainer.components")}, file.name


def test_a_trainer_has_all_that_the_engine_asks_of_it(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    missing = [name for name in members(host.TrainerHost) if not hasattr(run, name)]
    # What only some releases have, or some runs.
    assert set(missing) <= {
        *("deepspeed", "model_preparation_time", "push_in_progress", "_defer_fsdp_gradient_reduction"),
    }
    parts = {
        name: getattr(host, kind)
        for name, kind in host.TrainerHost.__annotations__.items()
        if kind.endswith("Host")
    }
    assert {"_fit", "_shutdown"} <= set(parts)
    for name, kind in parts.items():
        assert [one for one in members(kind) if not hasattr(getattr(run, name), one)] == [], name


def members(protocol: Any) -> set[str]:
    own = {name for name in vars(protocol) if callable(vars(protocol)[name]) or is_property(protocol, name)}
    special = {"__init__", "__subclasshook__", "_is_protocol", "_is_runtime_protocol"}
    return {name for name in own | set(protocol.__annotations__) if name not in special}


def is_property(protocol: Any, name: str) -> bool:
    return isinstance(vars(protocol)[name], property)


def test_the_plan_is_made_when_it_is_read_and_once_for_each_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    plan, of = fit.plan, fit.Facts.of

    def counted(*args: Any) -> Any:
        made.append("plan")
        return plan(*args)

    def looked(args: Any) -> Any:
        made.append("facts")
        return of(args)

    monkeypatch.setattr(fit, "plan", counted)
    monkeypatch.setattr(fit.Facts, "of", looked)
    run = trainer(tmp_path)
    assert made == ["facts"]
    assert run.plan is run.plan
    run.evaluate(rows())
    assert made == ["facts", "plan"]
    run.args.learning_rate = 0.25
    run.train()
    assert made == ["facts", "plan"] * 2
    assert next(one.value for one in run.plan.settings if one.field == "learning_rate") == 0.25


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_components_of_its_own(tmp_path: Path, copied: Any) -> None:
    run = trainer(tmp_path)
    twin = copied(run)
    parts = {name: part for name, part in vars(twin).items() if isinstance(part, Component)}
    assert {"_fit", "_shutdown"} <= set(parts)
    for name, part in parts.items():
        assert part.hf is twin, name
        assert getattr(run, name).hf is run
    twin.train()
    assert (twin.state.global_step, run.state.global_step) == (3, 0)


def test_a_pickled_component_has_the_trainer_that_takes_it(tmp_path: Path) -> None:
    run, other = trainer(tmp_path), trainer(tmp_path)
    run._shutdown.train_began = 3.0
    loaded = pickle.loads(pickle.dumps(run._shutdown))  # noqa: S301 (our own)
    taken = loaded.copied_to(other)
    assert (taken.train_began, taken.hf) == (3.0, other)
