"""A LightningModule of the user's: its evaluation and its modes are those of `lightning.Trainer`."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compat
from compat.errors import ArgumentError
from tests.small import arguments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOSSES = [1.0, 1.0, 1.0, 1.0, 6.0]
"""One for each sample; by batches of four their mean is (4 · 1 + 6) / 5 = 2."""


class Evaluated(pl.LightningModule):
    """Its loss on a sample is the sample."""

    def __init__(self, log: dict[str, Any] | None = None, *, returns: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.options, self.returns = log, returns

    def training_step(self, batch: Any) -> torch.Tensor:
        return batch[0].mean() + self.weight

    def validation_step(self, batch: Any) -> torch.Tensor | None:
        loss = batch[0].mean()
        if self.options is not None:
            self.log("val_loss", loss, **self.options)
        return loss if self.returns else None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.tensor(LOSSES)), batch_size=4)

    train_dataloader = val_dataloader


class Forward(pl.LightningModule):
    """Calls its own `forward`, and computes the loss from its output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def training_step(self, batch: Any) -> torch.Tensor:
        output = self(batch[0])
        assert output.dtype == torch.bfloat16
        return (output - self.layer(batch[0]).exp()).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x), batch_size=4)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_bf16_is_that_of_lightning(tmp_path: Path) -> None:
    ours, theirs = Forward(), Forward()
    theirs.load_state_dict(ours.state_dict())
    options = {"max_steps": 4, "max_grad_norm": 0.0, "bf16": True}
    compat.Trainer(ours, arguments(tmp_path, **options)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain_trainer(max_epochs=1, precision="bf16-mixed").fit(theirs)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def plain_trainer(**options: Any) -> pl.Trainer:
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(
        accelerator="cpu", num_sanity_val_steps=0, **{**dict.fromkeys(silent, False), **options}
    )


@pytest.mark.parametrize(
    ("log", "returns"),
    [({}, True), ({}, False), ({"batch_size": 3}, True), ({"reduce_fx": "max"}, True), (None, True)],
)
@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_its_loss_is_what_it_has_reduced_itself(tmp_path: Path, log: Any, returns: Any, size: int) -> None:
    # A loss that is not logged weighs what its batch has.
    expected = 2.0
    if log is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of workers
            (found,) = plain_trainer().validate(Evaluated(log, returns=returns), verbose=False)
        expected = found["val_loss"]
    options = {"per_device_eval_batch_size": size, "eval_strategy": "epoch", "max_steps": 2}
    ours = compat.Trainer(Evaluated(log, returns=returns), arguments(tmp_path, **options))
    assert ours.evaluate()["eval_loss"] == expected
    ours.train()
    assert [entry["eval_loss"] for entry in ours.state.log_history if "eval_loss" in entry] == [expected]


def test_its_loss_weighs_samples_of_hfs_loaders_too(tmp_path: Path) -> None:
    class OnRows(Evaluated):
        def validation_step(self, batch: Any) -> Any:
            return {"loss": batch["x"].mean()}

    rows = [{"x": torch.tensor(loss)} for loss in LOSSES]
    ours = compat.Trainer(OnRows(), arguments(tmp_path, per_device_eval_batch_size=4), eval_dataset=rows)
    assert ours.evaluate()["eval_loss"] == 2.0


@pytest.mark.parametrize("name", ["val/loss", "valid_loss", "validation/loss", "loss"])
def test_it_may_name_its_loss_as_it_likes(tmp_path: Path, name: str) -> None:
    class Named(Evaluated):
        def validation_step(self, batch: Any) -> Any:
            self.log(name, 7.0)
            return batch[0].mean()

    assert compat.Trainer(Named(), arguments(tmp_path)).evaluate()["eval_loss"] == 7.0


# Modes.


class Frozen(pl.LightningModule):
    """A backbone with statistics and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5))
        self.seen: list[tuple[str, bool, bool, bool]] = []

    def note(self, where: str) -> None:
        self.seen.append((where, self.training, self.backbone.training, self.head.training))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.note(f"train {batch_idx}")
        return self.head(self.backbone(batch[0])).pow(2).mean()

    def validation_step(self, batch: Any) -> None:
        self.note("validate")
        self.log("val_loss", self.head(self.backbone(batch[0])).pow(2).mean())

    def predict_step(self, batch: Any) -> torch.Tensor:
        self.note("predict")
        return self.head(self.backbone(batch[0]))

    def on_train_end(self) -> None:
        self.note("end")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x), batch_size=4)

    val_dataloader = predict_dataloader = train_dataloader


class FromTheStart(Frozen):
    def __init__(self) -> None:
        super().__init__()
        self.backbone.eval()


class WholeInEval(Frozen):
    def __init__(self) -> None:
        super().__init__()
        self.eval()


class EachEpoch(Frozen):
    def on_train_epoch_start(self) -> None:
        self.backbone.eval()


class EachBatch(Frozen):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.backbone.train(batch_idx == 0)


class InStep(Frozen):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.train(batch_idx == 1)
        return super().training_step(batch, batch_idx)


class OwnTrain(Frozen):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.backbone.eval()
        self.seen.append(("own train", mode, False, False))
        return self


class OwnHooks(Frozen):
    def on_validation_model_eval(self) -> None:
        self.head.eval()

    def on_validation_model_train(self) -> None:
        self.head.train()
        self.backbone.eval()


class Named(Frozen):
    """With an attribute of its own where modules have `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["train"] = lambda mode=True: self.seen.append(("called", mode, False, False))

    def on_validation_model_eval(self) -> None:
        self.backbone.eval()


KINDS = (Frozen, FromTheStart, WholeInEval, EachEpoch, EachBatch, InStep, OwnTrain, OwnHooks, Named)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*module.* in eval mode at the start of training")
def test_its_modes_are_those_of_lightning(tmp_path: Path, kind: Callable[[], Frozen]) -> None:
    torch.manual_seed(0)
    theirs = kind()
    ours = copy.deepcopy(theirs) if kind is not Named else kind()
    ours.load_state_dict(theirs.state_dict())
    plain = plain_trainer(max_epochs=3)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.fit(theirs)
        plain.predict(theirs, return_predictions=False)
    options = {"max_steps": -1, "num_train_epochs": 3, "eval_strategy": "epoch", "max_grad_norm": 0.0}
    trainer = compat.Trainer(ours, arguments(tmp_path, **options))
    torch.manual_seed(1)
    trainer.train()
    trainer.predict(trainer.train_dataset)
    assert ours.seen == theirs.seen
    assert [(n, m.training) for n, m in ours.named_modules()] == [
        (n, m.training) for n, m in theirs.named_modules()
    ]
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_modules_in_eval_mode_are_told_as_by_lightning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"Found 4 module\(s\) in eval mode at the start of training"):
        compat.Trainer(FromTheStart(), arguments(tmp_path)).train()


def test_a_class_of_optimizers_beside_the_modules_own_is_refused(tmp_path: Path) -> None:
    own = r"`optimizer_cls_and_kwargs=\(class SGD, …\)`: `Evaluated` brings its own optimizer"
    with pytest.raises(ArgumentError, match=own):
        compat.Trainer(Evaluated(), arguments(tmp_path), optimizer_cls_and_kwargs=(torch.optim.SGD, {}))


def test_a_given_optimizer_takes_the_place_of_the_modules_own(tmp_path: Path) -> None:
    module = Evaluated()
    given = torch.optim.SGD(module.parameters(), lr=0.5)
    args = arguments(tmp_path, max_steps=1, max_grad_norm=0.0)
    trainer = compat.Trainer(module, args, optimizers=(given, None))
    trainer.train()
    assert module.weight.item() == -0.5
