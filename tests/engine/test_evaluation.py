from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import compat
from compat.errors import ArgumentError
from tests.small import rows, trainer

if TYPE_CHECKING:
    from pathlib import Path


def test_a_metric_of_torchmetrics_equals_the_function(tmp_path: Path) -> None:
    def mse(prediction: Any) -> dict[str, float]:
        return {"MeanSquaredError": float(np.mean((prediction.predictions - prediction.label_ids) ** 2))}

    options = {"per_device_eval_batch_size": 2}
    by_function = trainer(tmp_path, compute_metrics=mse, **options).evaluate()
    by_metric = trainer(tmp_path, compute_metrics=MeanSquaredError(), **options).evaluate()
    assert by_metric["eval_MeanSquaredError"] == pytest.approx(by_function["eval_MeanSquaredError"], rel=1e-6)
    assert by_metric["eval_loss"] == by_function["eval_loss"]


@pytest.mark.parametrize("by_batch", [False, True], ids=["at the end", "by batch"])
def test_what_has_no_names_is_no_metrics(tmp_path: Path, by_batch: bool) -> None:
    def accuracy(prediction: Any, compute_result: bool = True) -> float | None:
        return 0.5 if compute_result else None

    ours = trainer(tmp_path, compute_metrics=accuracy, batch_eval_metrics=by_batch)
    with pytest.raises(
        ArgumentError, match=r"`compute_metrics=accuracy`: it returned 0\.5, where numbers by"
    ):
        ours.evaluate()


def test_outputs_are_not_piled_up_for_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compat.engine import evaluation

    kept: list[int] = []
    original = evaluation.Evaluation.result

    def result(self: Any, dataloader: Any) -> Any:
        kept.append(sum(self._kept[name].get_arrays() is not None for name in ("preds", "labels")))
        return original(self, dataloader)

    monkeypatch.setattr(evaluation.Evaluation, "result", result)
    trainer(tmp_path, compute_metrics=MeanSquaredError()).evaluate()
    trainer(tmp_path, compute_metrics=lambda _: {}).evaluate()
    assert kept == [0, 2]


def test_predictions_are_kept_beside_a_metric(tmp_path: Path) -> None:
    output = trainer(tmp_path, compute_metrics=MeanSquaredError()).predict(rows(5))
    assert output.predictions.shape == (5, 1)
    assert output.metrics["test_MeanSquaredError"] > 0


def test_a_metric_starts_anew_at_each_evaluation(tmp_path: Path) -> None:
    ours = trainer(tmp_path, compute_metrics=MeanSquaredError())
    assert ours.evaluate()["eval_MeanSquaredError"] == ours.evaluate()["eval_MeanSquaredError"]


def test_a_collection_and_a_metric_that_is_no_number(tmp_path: Path) -> None:
    class Classifier(torch.nn.Module):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": x.sum() * 0, "logits": x}

    data = [{"x": torch.eye(3)[i % 3], "labels": i % 3 if i else 1} for i in range(6)]
    metrics = MetricCollection(
        {"accuracy": MulticlassAccuracy(3, average="micro"), "confusion": MulticlassConfusionMatrix(3)}
    )
    found = trainer(tmp_path, model=Classifier(), eval_dataset=data, compute_metrics=metrics).evaluate()
    assert found["eval_accuracy"] == pytest.approx(5 / 6)
    assert found["eval_confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 2]]


def entries(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each time that Lightning's `validate` or `predict` is entered."""
    entered: list[str] = []
    for name in ("validate", "predict"):
        method = getattr(run.lightning, name)

        def entering(*args: Any, _name: str = name, _method: Any = method, **options: Any) -> Any:
            entered.append(_name)
            return _method(*args, **options)

        monkeypatch.setattr(run.lightning, name, entering)
    return entered


def test_lightning_is_entered_once_where_nobody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[tuple[str, str, bool]] = []

    class Looks(compat.TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = run.lightning.state
            states.append((now.fn.value, now.stage.value, bool(run.model.training)))

    sets = {name: rows(4) for name in ("a", "b", "c")}
    run = trainer(tmp_path, eval_dataset=sets, callbacks=[Looks()], per_device_eval_batch_size=4)
    entered = entries(run, monkeypatch)
    metrics = run.evaluate()
    assert entered == ["validate"]
    assert states == [("validate", "validate", False)] * 3
    assert run.lightning.state.finished
    assert run.lightning.state.stage is None
    assert metrics["eval_a_loss"] == metrics["eval_b_loss"] == metrics["eval_c_loss"]
    output = run.predict(rows(4))
    assert output.predictions.shape == (4, 1)
    assert states[-1] == ("predict", "predict", False)
    run.train()
    entered = entries(run, monkeypatch)
    run.evaluate()
    run.evaluate()
    assert entered == ["validate"]


def test_a_callback_of_lightnings_sees_each_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Looks(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append(trainer.state.fn.value)

    run = trainer(tmp_path, eval_dataset=rows(4), per_device_eval_batch_size=4)
    entered = entries(run, monkeypatch)
    run.evaluate()
    run.add_callback(Looks())
    run.evaluate()
    run.evaluate()
    assert entered == ["validate"] * 3
    assert seen == ["validate"] * 2


def test_an_evaluation_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    fails = [False, False, True, False]

    def metric(_: Any) -> dict[str, float]:
        return {"one": 1.0}

    class Fails(compat.TrainerCallback):
        def on_prediction_step(self, *_: Any, **__: Any) -> None:
            if fails and fails.pop(0):
                raise KeyboardInterrupt

    run = trainer(tmp_path, eval_dataset=rows(4), callbacks=[Fails()], compute_metrics=metric)
    run.args.per_device_eval_batch_size = 4
    first = run.evaluate()
    run.evaluate()
    with pytest.raises(KeyboardInterrupt):
        run.evaluate()
    assert not run.lightning.state.finished
    assert run.lightning.state.stage is None
    assert run.evaluate()["eval_loss"] == first["eval_loss"]


def test_an_evaluation_within_one_has_a_trainer_of_its_own(tmp_path: Path) -> None:
    inner: list[float] = []

    class Nested(compat.Trainer):
        def prediction_step(self, *args: Any, **options: Any) -> Any:
            if not self.is_inner:
                self.is_inner = True
                inner.append(self.evaluate(rows(4))["eval_loss"])
                self.is_inner = False
            return super().prediction_step(*args, **options)

    run = trainer(tmp_path, Nested, eval_dataset=rows(4), per_device_eval_batch_size=4)
    run.is_inner = False
    losses = [run.evaluate()["eval_loss"] for _ in range(3)]
    assert inner == losses
    assert len(set(losses)) == 1


def test_many_sets_cost_hardly_more_calls_than_with_hf(tmp_path: Path) -> None:
    calls: list[int] = []
    for kind in (compat.Trainer, transformers.Trainer):
        sets = {f"set{number}": rows(4) for number in range(30)}
        run = trainer(tmp_path, kind, eval_dataset=sets, per_device_eval_batch_size=4)
        run.evaluate()
        count = 0

        def counting(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(counting)
        try:
            run.evaluate()
        finally:
            sys.setprofile(None)
        calls.append(count)
    assert calls[0] < 1.25 * calls[1]
