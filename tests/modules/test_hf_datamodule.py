"""`HFDataModule` by itself, and beside a LightningModule of somebody's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch

import compat
from compat.errors import ArgumentError
from tests.parity.parts import data
from tests.small import Regression, arguments, rows

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*no `val_dataloader`")


class Plain(pl.LightningModule):
    """Somebody's own module; notes the batches it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(4, 1)
        self.seen: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch["x"][:, 0].tolist())
        return self.model(batch["x"]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def lightning(**flags: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{"accelerator": "cpu", "enable_model_summary": False, **quiet, **flags})


def order(loader: Any) -> list[list[float]]:
    return [batch["x"][:, 0].tolist() for batch in loader]


def test_a_module_of_ones_own_gets_hfs_batches(tmp_path: Path) -> None:
    args = arguments(tmp_path, data_seed=5, per_device_train_batch_size=3)
    hf = compat.Trainer(Regression(), args, train_dataset=rows(8))
    expected = hf.get_train_dataloader()
    batches = []
    for epoch in range(2):
        expected.set_epoch(epoch)
        batches += order(expected)
    module = Plain()
    lightning(max_epochs=2).fit(module, datamodule=compat.HFDataModule(args, rows(8)))
    assert module.seen == batches
    assert batches[:3] != batches[3:]

    module = Plain()
    lightning(max_epochs=2, overfit_batches=2).fit(module, datamodule=compat.HFDataModule(args, rows(8)))
    first = [[float(row["x"][0]) for row in rows(8)[start : start + 3]] for start in (0, 3)]
    assert module.seen == first * 2


def test_its_batch_size_is_that_of_the_arguments(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    loaders = compat.HFDataModule(args, rows(8))
    loaders.batch_size = 4
    assert (args.per_device_train_batch_size, loaders.batch_size) == (4, 4)
    assert len(loaders.train_dataloader()) == 2


def test_columns_stay_unless_a_model_says_which_it_takes(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    everything = next(iter(compat.HFDataModule(args, data.table()).train_dataloader()))
    taken = next(iter(compat.HFDataModule(args, data.table(), model=Regression()).train_dataloader()))
    assert set(taken) == {"x", "labels"}
    assert set(everything) > set(taken)


def test_several_evaluations_are_logged_by_name(tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    several = {"left": rows(5), "right": rows(9)[5:]}
    module = compat.HFModule(Regression(), args)
    (logged, *_) = lightning().validate(
        module, datamodule=compat.HFDataModule(args, eval_dataset=several), verbose=False
    )
    hf = compat.Trainer(module.model, args)
    expected = {name: hf.evaluate(part)["eval_loss"] for name, part in several.items()}
    assert logged["eval_left_loss"] == pytest.approx(expected["left"], rel=1e-7)
    assert logged["eval_right_loss"] == pytest.approx(expected["right"], rel=1e-7)


def test_a_dataset_that_is_missing_is_named(tmp_path: Path) -> None:
    loaders = compat.HFDataModule(arguments(tmp_path))
    with pytest.raises(ArgumentError, match="`train_dataset=None`: there is nothing to train on"):
        loaders.train_dataloader()
    with pytest.raises(ArgumentError, match="`test_dataset=None`: there is nothing to predict"):
        loaders.predict_dataloader()
