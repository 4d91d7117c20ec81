"""SetFit, which makes a trainer of its own inside: on HF's Trainer and with compat installed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import compat
from tests.parity.parts.embeddings import WIDTH, saved_berts, sentences, texts
from tests.parity.plain import plain
from tests.parity.record import assert_equal, isolated, record_files, record_trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

setfit = pytest.importorskip("setfit", reason="needs setfit")

from sentence_transformers import SentenceTransformer  # noqa: E402 (after it is known to be there)
from sentence_transformers.base.modules import Transformer  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

# transformers, accelerate, torch and setfit warn of their own doings; what they warn of is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

ALWAYS = {
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
    "show_progress_bar": False,
    "batch_size": 4,
    "num_epochs": 1,
    "max_steps": 5,
    "body_learning_rate": 0.01,
}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2, "eval_max_steps": 2}
BEST = {**EVALUATES, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}


def labelled(count: int, seed: int) -> Any:
    return texts("text", count, seed, label=lambda row: row % 3)


def accuracy(predicted: Any, expected: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.asarray(predicted) == np.asarray(expected)))}


def classifier(berts: Path, head: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    encoder = Transformer(str(berts / "encoder"), max_seq_length=12)
    body = SentenceTransformer(modules=[encoder, Pooling(WIDTH)], device="cpu")
    return setfit.SetFitModel(model_body=body, model_head=head())


def differentiable() -> Any:
    return setfit.SetFitHead(in_features=WIDTH, out_features=3)


@dataclass(frozen=True)
class Setup:
    """One script, to be run on HF's Trainer and with compat installed.

    Args:
        name: what it shows.
        args: further arguments.
        head: builds the head of the classifier.
        teaches: whether what is trained is a teacher, and a student learns from it.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    head: Callable[[], Any] = LogisticRegression
    teaches: bool = False

    def run(self, berts: Path, home: Path) -> list[Any]:
        """Do it, and return the trainers of SetFit's.

        Args:
            berts: the folder that has the BERT.
            home: where the run writes.
        """
        args = setfit.TrainingArguments(output_dir=str(home), **{**ALWAYS, **self.args})
        parts = {"train_dataset": labelled(12, 0), "eval_dataset": labelled(9, 30), "metric": accuracy}
        trainers = [setfit.Trainer(model=classifier(berts, self.head), args=args, **parts)]
        trainers[0].train()
        if self.teaches:
            learning = partial(setfit.DistillationTrainer, teacher_model=trainers[0].model)
            student = classifier(berts, self.head)
            trainers.append(learning(student_model=student, args=args, **parts))
            trainers[1].train()
        return trainers


SETUPS = (
    Setup("the best model", args=BEST),
    Setup("a head that is trained with torch", head=differentiable, args={"num_epochs": (1, 2)}),
    Setup("groups of labels", args={"loss": losses.BatchAllTripletLoss, "batch_size": 6, "max_steps": 3}),
    Setup("distillation", teaches=True),
)


def record(setup: Setup, berts: Path, home: Path) -> Any:
    """Run a set-up as if in a process of its own, and record it."""
    home.mkdir()
    with isolated():
        trainers = setup.run(berts, home)
        return {
            "trainers": [record_trainer(trainer.st_trainer, [], home) for trainer in trainers],
            "probabilities": plain([trainer.model.predict_proba(sentences(4, 50)) for trainer in trainers]),
            "evaluated": plain([trainer.evaluate() for trainer in trainers]),
            "files": record_files(home),
        }


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_berts(tmp_path_factory.mktemp("berts"))


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_equal(setup: Setup, berts: Path, tmp_path: Path) -> None:
    theirs = record(setup, berts, tmp_path / "theirs")
    compat.install()
    try:
        found = record(setup, berts, tmp_path / "ours")
    finally:
        compat.uninstall()
    assert_equal(found, theirs)
