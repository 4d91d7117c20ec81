from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

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


def test_outputs_are_not_piled_up_for_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compat.engine import evaluation

    kept: list[int] = []
    original = evaluation.Evaluation.result

    def result(self: Any, dataloader: Any) -> Any:
        kept.append(sum(self._kept[name].tensors is not None for name in ("preds", "labels")))
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
