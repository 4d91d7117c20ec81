"""Data that HF's dataloaders cannot read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from torch.utils.data import DataLoader

import compat
from compat.errors import ArgumentError
from tests.small import rows, trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA: dict[str, tuple[Callable[[], Any], str]] = {
    "name": (lambda: "squad", "='squad'`: a name, where the data itself is wanted"),
    "dataloader": (
        lambda: DataLoader(rows()),
        "=DataLoader`: a dataloader, and the trainer builds one itself",
    ),
    "generator": (lambda: iter(rows()), "=list_iterator`: its rows have no numbers. Give a list, or"),
}


@pytest.mark.parametrize("kind", DATA)
def test_what_has_no_rows_is_refused(tmp_path: Path, kind: str) -> None:
    make, expected = DATA[kind]
    ours = trainer(tmp_path, train_dataset=make(), eval_dataset=make())
    with pytest.raises(ArgumentError, match="`train_dataset" + expected):
        ours.train()
    with pytest.raises(ArgumentError, match="`eval_dataset" + expected):
        ours.evaluate()
    with pytest.raises(ArgumentError, match="`test_dataset" + expected):
        ours.predict(make())


def test_splits_are_not_rows(tmp_path: Path) -> None:
    ours = trainer(tmp_path, train_dataset={"train": rows(), "test": rows()})
    with pytest.raises(ArgumentError, match="`train_dataset=dict`: a mapping by the names 'train', 'test'"):
        ours.train()


def test_rows_by_number_are_taken(tmp_path: Path) -> None:
    kinds = (rows(), dict(enumerate(rows())))
    listed, numbered = (trainer(tmp_path, train_dataset=data).train().training_loss for data in kinds)
    assert listed == numbered


def test_a_name_among_the_evaluation_sets(tmp_path: Path) -> None:
    ours = trainer(tmp_path, eval_dataset={"easy": rows()})
    assert len(ours.get_eval_dataloader("easy").dataset) == len(rows())
    with pytest.raises(ArgumentError, match="`eval_dataset='hard'`: a name"):
        ours.get_eval_dataloader("hard")


def test_a_subclass_may_build_its_dataloader(tmp_path: Path) -> None:
    class Own(compat.Trainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(self.train_dataset)

    loader = DataLoader(rows(), batch_size=4)
    ours = trainer(tmp_path, kind=Own, train_dataset=loader, max_steps=1)
    assert ours.train().global_step == 1
