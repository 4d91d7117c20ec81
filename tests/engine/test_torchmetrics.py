"""Metrics of torchmetrics see predictions and labels as the model's loss compares them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MulticlassF1Score
from torchmetrics.text import Perplexity
from torchmetrics.wrappers import MinMaxMetric

import compat
from compat.engine.torchmetrics import TorchMetrics, shifted
from compat.errors import ArgumentError
from tests.parity.parts import data, models
from tests.small import arguments, trainer

if TYPE_CHECKING:
    from pathlib import Path

IGNORED = -100


def language_model(folder: Path, metric: Any, **parts: Any) -> compat.Trainer:
    torch.manual_seed(0)
    options = arguments(folder, per_device_eval_batch_size=1)
    rows = data.text(5, 1)
    return compat.Trainer(
        models.gpt2(), options, eval_dataset=rows, data_collator=data.pad, compute_metrics=metric, **parts
    )


def tokens(ours: compat.Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of (tokens, vocabulary) and the labels that they are for, row by row."""
    logits, labels = [], []
    for row in ours.eval_dataset:
        ids = torch.as_tensor(row["input_ids"])[None]
        with torch.no_grad():
            logits.append(ours.model.eval()(ids).logits[0, :-1])
        labels.append(torch.as_tensor(row["labels"])[1:])
    return torch.cat(logits), torch.cat(labels)


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_perplexity_of_a_causal_model_is_that_of_its_loss(tmp_path: Path) -> None:
    ours = language_model(tmp_path, Perplexity(ignore_index=IGNORED))
    found = ours.evaluate()["eval_Perplexity"]
    logits, labels = tokens(ours)
    assert found == pytest.approx(math.exp(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("leaves_out_last", [True, False])
def test_predictions_that_were_made_of_logits_are_moved_too(tmp_path: Path, leaves_out_last: bool) -> None:
    def best(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        found = logits.argmax(-1)
        return found[:, :-1] if leaves_out_last else found

    metric = MulticlassAccuracy(models.VOCABULARY, average="micro", ignore_index=IGNORED)
    ours = language_model(tmp_path, metric, preprocess_logits_for_metrics=best)
    found = ours.evaluate()["eval_MulticlassAccuracy"]
    logits, labels = tokens(ours)
    assert found == pytest.approx((logits.argmax(-1) == labels).double().mean().item())


@pytest.mark.filterwarnings("ignore")
def test_a_collection_gives_each_metric_its_own_layout(tmp_path: Path) -> None:
    collection = MetricCollection(
        {
            "perplexity": Perplexity(ignore_index=IGNORED),
            "accuracy": MulticlassAccuracy(models.VOCABULARY, average="micro", ignore_index=IGNORED),
        }
    )
    ours = language_model(tmp_path, collection)
    metrics = ours.evaluate()
    logits, labels = tokens(ours)
    assert metrics["eval_accuracy"] == pytest.approx((logits.argmax(-1) == labels).double().mean().item())
    expected = math.exp(torch.nn.functional.cross_entropy(logits, labels))
    assert metrics["eval_perplexity"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_classes_of_tokens_come_second_and_are_not_moved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.tagger()
    classes = model.config.num_labels
    f1 = MulticlassF1Score(classes, average="macro", ignore_index=IGNORED)
    options = arguments(tmp_path, per_device_eval_batch_size=1)
    rows = data.tagged(5, 1)
    ours = compat.Trainer(model, options, eval_dataset=rows, compute_metrics=f1, data_collator=data.pad)
    found = ours.evaluate()["eval_MulticlassF1Score"]
    expected = MulticlassF1Score(classes, average="macro", ignore_index=IGNORED)
    for row in rows:
        batch = data.pad([row])
        with torch.no_grad():
            logits = ours.model.eval()(
                **{key: value for key, value in batch.items() if key != "labels"}
            ).logits
        expected.update(logits[0], batch["labels"][0])
    assert found == pytest.approx(expected.compute().item())


def test_a_metric_within_another_one_keeps_its_layout() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 3), torch.randint(0, 3, (4, 3))
    expected = (logits.argmax(-1) == labels).double().mean().item()

    def found(metric: Any) -> Any:
        ours = TorchMetrics(metric, shifts_labels=False)
        ours.update(logits, labels)
        return ours.compute()

    def accuracy() -> MulticlassAccuracy:
        return MulticlassAccuracy(3, average="micro")

    assert found(accuracy())["MulticlassAccuracy"] == pytest.approx(expected)
    assert found(MinMaxMetric(accuracy()))["raw"] == pytest.approx(expected)
    assert list(found(accuracy() * 100).values()) == [pytest.approx(100 * expected)]


def test_one_number_for_each_sample_is_compared_as_one() -> None:
    ours = TorchMetrics(MeanSquaredError(), shifts_labels=False)
    ours.update(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
    assert ours.compute()["MeanSquaredError"] == 2.0


def test_what_a_metric_refuses_says_what_to_write() -> None:
    labels = torch.tensor([[1, IGNORED], [0, 1]])
    for metric, logits, text in (
        (MulticlassAccuracy(3), torch.zeros(2, 2, 3), "give it `ignore_index=-100`"),
        (
            MeanSquaredError(),
            torch.zeros(2, 5),
            r"of shape \(2, 5\) and labels of shape \(2, 2\) are refused",
        ),
        (BinaryAccuracy(), (torch.zeros(2), torch.zeros(2)), "there are 2 predictions. Choose one with"),
    ):
        with pytest.raises(ArgumentError, match=text) as error:
            TorchMetrics(metric, shifts_labels=False).update(logits, labels)
        assert str(error.value).startswith(f"`compute_metrics={type(metric).__name__}`")


def test_what_is_not_by_token_is_not_moved() -> None:
    predictions, labels = torch.zeros(4, 2), torch.zeros(4)
    assert shifted(predictions, labels) == (predictions, labels)
    predictions, labels = torch.zeros(4, 5, 2), torch.zeros(4, 2)
    assert shifted(predictions, labels) == (predictions, labels)


def test_other_outputs_stay_as_they_are(tmp_path: Path) -> None:
    ours = trainer(tmp_path, compute_metrics=MeanSquaredError())
    assert ours.evaluate()["eval_MeanSquaredError"] == pytest.approx(ours.evaluate()["eval_loss"])
