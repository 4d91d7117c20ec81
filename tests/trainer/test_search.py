"""`hyperparameter_search` with optuna, beside that of `transformers.Trainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import compat
from tests.small import Regression, arguments, rows

if TYPE_CHECKING:
    from pathlib import Path

optuna = pytest.importorskip("optuna")


def model() -> Regression:
    torch.manual_seed(0)
    return Regression()


def space(trial: Any) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [2, 3, 4]),
        "weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1),
    }


def search(folder: Path, kind: type, **options: Any) -> tuple[Any, Any]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    args = arguments(
        folder, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=4
    )
    run = kind(args=args, model_init=model, train_dataset=rows(), eval_dataset=rows(5))
    best = run.hyperparameter_search(
        hp_space=space,
        backend="optuna",
        n_trials=3,
        sampler=optuna.samplers.TPESampler(seed=7),
        **{"direction": "minimize", **options},
    )
    return run, best


def test_the_best_of_three_is_that_of_transformers(tmp_path: Path) -> None:
    ours, best = search(tmp_path / "ours", compat.Trainer)
    theirs, expected = search(tmp_path / "theirs", transformers.Trainer)
    assert best.run_id == expected.run_id
    assert best.objective == expected.objective
    assert best.hyperparameters == expected.hyperparameters
    assert set(best.hyperparameters) == {"learning_rate", "per_device_train_batch_size", "weight_decay"}
    assert ours.state.trial_params == theirs.state.trial_params
    trials = best.run_summary, expected.run_summary
    assert trials[0] == trials[1]


def test_each_trial_trains_in_a_folder_of_its_own(tmp_path: Path) -> None:
    run, best = search(tmp_path, compat.Trainer)
    assert {path.name for path in tmp_path.iterdir()} == {"run-0", "run-1", "run-2"}
    assert all((tmp_path / f"run-{n}" / "checkpoint-4").is_dir() for n in range(3))
    assert run.state.is_hyper_param_search
    assert run.args.learning_rate == run.state.trial_params["learning_rate"]
    assert best.run_id in {"0", "1", "2"}


def test_an_objective_and_a_name_of_ones_own(tmp_path: Path) -> None:
    objectives: list[float] = []

    def objective(metrics: dict[str, float]) -> float:
        objectives.append(-metrics["eval_loss"])
        return objectives[-1]

    _, best = search(
        tmp_path,
        compat.Trainer,
        direction="maximize",
        compute_objective=objective,
        hp_name=lambda trial: f"try-{trial.number}",
    )
    assert best.objective == max(objectives[1::2])
    assert {path.name for path in tmp_path.iterdir()} == {"try-0", "try-1", "try-2"}


def test_a_search_needs_a_model_init(tmp_path: Path) -> None:
    run = compat.Trainer(model=model(), args=arguments(tmp_path), train_dataset=rows())
    with pytest.raises(RuntimeError, match="you need to pass your model through a model_init"):
        run.hyperparameter_search(n_trials=1, backend="optuna")


def test_pruned_trials_are_left_out(tmp_path: Path) -> None:
    class Never(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return trial.number > 0

    _, best = search(tmp_path, compat.Trainer, pruner=Never())
    assert best.run_id == "0"
