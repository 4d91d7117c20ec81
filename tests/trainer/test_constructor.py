"""What the constructor refuses for its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate.utils.deepspeed import DummyOptim, DummyScheduler
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import compat
from compat.errors import ArgumentError
from compat.trainer import constructor
from tests.small import Regression, rows, trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SGD, StepLR = torch.optim.SGD, torch.optim.lr_scheduler.StepLR


def sgd(model: nn.Module) -> Any:
    return SGD(model.parameters(), lr=0.1)


WRONG: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "optimizer alone": (sgd, "`optimizers=SGD`: not a pair"),
    "one": (lambda model: (sgd(model),), "`optimizers=tuple`: not a pair"),
    "dict": (lambda model: {"optimizer": sgd(model), "scheduler": None}, "`optimizers=dict`: not a pair"),
    "class": (lambda _: (SGD, None), r"`optimizers=\(class SGD, None\)`: class SGD is no optimizer"),
    "function": (lambda _: (sgd, None), r"`optimizers=\(sgd, None\)`: sgd is no optimizer"),
    "exchanged": (
        lambda model: (StepLR(sgd(model), 1), sgd(model)),
        r"`optimizers=\(StepLR, SGD\)`: StepLR is no optimizer",
    ),
    "scheduler of Lightning's": (
        lambda model: (sgd(model), {"scheduler": StepLR(sgd(model), 1)}),
        r"`optimizers=\(SGD, dict\)`: dict is no scheduler",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_optimizers_of_another_kind_are_refused(tmp_path: Path, kind: str) -> None:
    make, expected = WRONG[kind]
    model = Regression()
    with pytest.raises(ArgumentError, match=expected + r"\. Give `optimizers=\(optimizer, scheduler\)`"):
        trainer(tmp_path, model=model, optimizers=make(model))


@pytest.mark.parametrize("pair", [tuple, list])
def test_a_pair_is_taken_in_either_form(tmp_path: Path, pair: type) -> None:
    model = Regression()
    optimizer = sgd(model)
    ours = trainer(tmp_path, model=model, optimizers=pair([optimizer, None]), max_steps=1)
    ours.train()
    assert ours.optimizer is optimizer or ours.optimizer.optimizer is optimizer


def test_an_optimizer_that_needs_a_closure_is_refused(tmp_path: Path) -> None:
    model = Regression()
    with pytest.raises(ArgumentError, match=r"`optimizers=\(LBFGS, None\)`: `LBFGS.step` needs a closure"):
        trainer(tmp_path, model=model, optimizers=(torch.optim.LBFGS(model.parameters()), None))


def test_parts_that_belong_to_others_are_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Regression()
    own, others = sgd(model), sgd(Regression())
    said: list[str] = []
    monkeypatch.setattr(constructor.logger, "warning", said.append)
    for pair in ((own, StepLR(own, 1)), (own, None), (others, None), (own, StepLR(others, 1))):
        trainer(tmp_path, model=model, optimizers=pair)
    assert [sentence.partition(", ")[0] for sentence in said] == [
        "`optimizers=(SGD",
        "`optimizers=(…",
    ]
    assert "none of its parameters is the model's" in said[0]
    assert "StepLR)`: it schedules another optimizer" in said[1]


def test_stand_ins_of_accelerate_are_taken(tmp_path: Path) -> None:
    model = Regression()
    stand_in = DummyOptim(list(model.parameters()))
    pair = (stand_in, DummyScheduler(stand_in))
    assert trainer(tmp_path, model=model, optimizers=pair).optimizer is stand_in


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"model": Regression},
            "`model=Regression`: a class. Give an instance of it, or `model_init=Regression`",
        ),
        ({"args": {"seed": 1}}, r"`args=dict`: not arguments. Give `args=TrainingArguments"),
        ({"callbacks": Timer()}, r"`callbacks=Timer`: not a list. Give `callbacks=\[…\]`"),
        ({"data_collator": "default"}, "`data_collator=str`: it cannot be called. Give a function"),
        ({"compute_metrics": {"accuracy": 1}}, "`compute_metrics=dict`: it cannot be called"),
    ],
    ids=["model", "args", "callbacks", "collator", "metrics"],
)
def test_so_are_other_parameters(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected):
        compat.Trainer(**{"model": Regression(), "train_dataset": rows(), **given})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"report_to": [CSVLogger("logs")]}, r"`report_to=\[CSVLogger\]`: not a name"),
        ({"report_to": CSVLogger("logs")}, r"`report_to=\[CSVLogger\]`: not a name"),
        ({"lightning": {"logger": CSVLogger}}, "`lightning.logger=class CSVLogger`: not a logger"),
        ({"lightning": {"logger": ["csv"]}}, "`lightning.logger=str`: not a logger"),
    ],
    ids=["objects for names", "an object for a name", "class", "name"],
)
def test_loggers_are_objects_and_integrations_names(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ArgumentError, match=expected):
        trainer(tmp_path, **options)
