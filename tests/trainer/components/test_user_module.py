"""A LightningModule as model, a LightningDataModule as data."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torchmetrics
import transformers
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compat
from compat.errors import ArgumentError
from compat.trainer.datamodule_dataset import DataModuleDataset
from tests.small import Regression, arguments, rows

if TYPE_CHECKING:
    from pathlib import Path

Batch = list[torch.Tensor]


class Classifier(pl.LightningModule):
    """As users write them, for a Trainer of Lightning's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.calls: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert self.training
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        self.calls.append(f"train {batch_idx}")
        return loss

    def validation_step(self, batch: Batch) -> None:
        assert not self.training
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val_acc", self.accuracy)
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))

    def predict_step(self, batch: Batch) -> torch.Tensor:
        return self.net(batch[0])

    def on_train_epoch_end(self) -> None:
        self.calls.append(f"epoch {self.current_epoch} step {self.global_step}")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.prepared = 0

    def prepare_data(self) -> None:
        self.prepared += 1

    def setup(self, stage: str) -> None:
        x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
        self.samples = TensorDataset(x, (x[:, 0] > 0).long())

    def train_dataloader(self) -> Any:
        return DataLoader(self.samples, batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(self.samples, batch_size=10)

    def predict_dataloader(self) -> Any:
        return DataLoader(self.samples, batch_size=10)


EPOCHS = {"max_steps": -1, "num_train_epochs": 3, "eval_strategy": "epoch", "max_grad_norm": 0.0}


def test_it_trains_to_the_bit_as_under_lightning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier()
    theirs, data = copy.deepcopy(model), Data()
    best = ModelCheckpoint(tmp_path / "best", monitor="val_acc", mode="max")
    ours = compat.Trainer(
        model=model,
        args=arguments(tmp_path, save_strategy="epoch", **EPOCHS),
        train_dataset=data,
        callbacks=[EarlyStopping("val_loss"), best],
    )
    torch.manual_seed(1)
    ours.train()

    plain = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, and torch's of Lightning
        plain.fit(theirs, datamodule=Data())
    assert all(map(torch.equal, model.state_dict().values(), theirs.state_dict().values()))
    assert model.calls == theirs.calls
    expected = {name: value.item() for name, value in plain.callback_metrics.items()}
    seen = {name: value.item() for name, value in ours.lightning.callback_metrics.items()}
    assert {name: seen[name] for name in expected} == expected
    assert "epoch" not in seen

    evaluated = [entry for entry in ours.state.log_history if "eval_acc" in entry]
    assert [entry["step"] for entry in evaluated] == [6, 12, 18]
    assert evaluated[-1]["eval_acc"] == expected["val_acc"]
    assert evaluated[-1]["eval_loss"] == expected["val_loss"]
    rates = [entry["learning_rate"] for entry in ours.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.1] * 6 + [0.05] * 6 + [0.025] * 6)
    assert best.best_model_score == max(entry["eval_acc"] for entry in evaluated)
    assert data.prepared == 1
    with torch.no_grad():
        logits = model.eval().net(data.samples.tensors[0])
    assert torch.equal(torch.tensor(ours.predict(data).predictions), logits)


def test_it_is_resumed(tmp_path: Path) -> None:
    def made(name: str) -> compat.Trainer:
        torch.manual_seed(0)
        options = {**EPOCHS, "save_strategy": "steps", "save_steps": 4}
        return compat.Trainer(Classifier(), arguments(tmp_path / name, **options), train_dataset=Data())

    whole, again = made("whole"), made("again")
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert all(map(torch.equal, whole.model.state_dict().values(), again.model.state_dict().values()))


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass
class Example:
    x: torch.Tensor
    y: torch.Tensor


class Movable:
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: Any) -> Movable:
        return Movable(self.x.to(device), self.y.to(device))


BATCHES: dict[str, tuple[Any, Any]] = {
    "tensor": (lambda x, y: torch.cat([x, y[:, None]], 1), lambda batch: (batch[:, :4], batch[:, 4])),
    "list": (lambda x, y: [x, y], lambda batch: batch),
    "named": (Pair, lambda batch: (batch.x, batch.y)),
    "dataclass": (Example, lambda batch: (batch.x, batch.y)),
    "movable": (Movable, lambda batch: (batch.x, batch.y)),
    "number": (lambda x, y: len(x), lambda batch: (torch.ones(batch, 4), torch.zeros(batch))),
    "text": (lambda x, y: "labels", lambda batch: (torch.ones(2, 4), torch.zeros(2))),
    "arrays": (lambda x, y: (x.numpy(), y.numpy()), lambda batch: map(torch.tensor, batch)),
    "nested": (
        lambda x, y: {"deep": [Pair(x, x), {0: (Example(x, y), None)}], "text": "a", "labels": None},
        lambda batch: (batch["deep"][0].x, batch["deep"][1][0][0].y),
    ),
}
"""Kinds of batches: how one is made of inputs and targets, and how a step gets them back."""


class AnyBatch(pl.LightningModule):
    """Takes its inputs and targets out of a batch of any kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.kind = kind

    def training_step(self, batch: Any) -> torch.Tensor:
        x, y = BATCHES[self.kind][1](batch)
        return ((self.net(x)[:, 0] - y) ** 2).mean()

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.training_step(batch), batch_size=2)

    def predict_step(self, batch: Any) -> torch.Tensor:
        x, _ = BATCHES[self.kind][1](batch)
        return self.net(x)

    def train_dataloader(self) -> Any:
        def collated(samples: list[Any]) -> Any:
            x = torch.stack([sample["x"] for sample in samples])
            return BATCHES[self.kind][0](x, x.sum(1))

        return DataLoader(rows(8), batch_size=2, collate_fn=collated)

    val_dataloader = predict_dataloader = train_dataloader

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")
@pytest.mark.parametrize("kind", BATCHES)
def test_batches_are_of_any_kind(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    theirs = AnyBatch(kind)
    model = copy.deepcopy(theirs)
    silent = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    plain = pl.Trainer(max_epochs=2, accelerator="cpu", accumulate_grad_batches=2, **silent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, and torch's of Lightning
        plain.fit(theirs)
        metrics = dict(plain.callback_metrics)
        predicted = torch.cat(plain.predict(theirs, theirs.predict_dataloader()))  # type: ignore[arg-type]
    options = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    ours = compat.Trainer(model, arguments(tmp_path, include_num_input_tokens_seen="all", **options))
    ours.train()
    assert all(map(torch.equal, model.state_dict().values(), theirs.state_dict().values()))
    assert ours.evaluate()["eval_loss"] == metrics["val_loss"]
    assert torch.equal(torch.tensor(ours.predict(DataModuleDataset(model)).predictions), predicted)


def test_files_are_named_as_by_lightning(tmp_path: Path) -> None:
    class Logs(Classifier):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log_dict({"loss": loss + 1, "grad_norm": 5.0})
            return loss

    def written(folder: Path, fit: Any) -> list[str]:
        torch.manual_seed(0)
        fit(Logs(), ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1))
        return sorted(file.name for file in folder.iterdir())

    def by_lightning(model: Any, saves: Any) -> None:
        silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        plain = pl.Trainer(
            max_epochs=3, accelerator="cpu", callbacks=[saves], num_sanity_val_steps=0, **silent
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain.fit(model, datamodule=Data())

    def by_ours(model: Any, saves: Any) -> None:
        ours = compat.Trainer(model, arguments(tmp_path, **EPOCHS), train_dataset=Data(), callbacks=[saves])
        ours.train()
        assert ours.lightning.callback_metrics["grad_norm"] == 5.0
        assert ours.lightning.callback_metrics["loss"] > 1.0

    expected = written(tmp_path / "theirs", by_lightning)
    assert expected[0] == "epoch=0-step=4.ckpt"
    assert written(tmp_path / "ours", by_ours) == expected


class Waiting(Classifier):
    """With a scheduler that waits for a metric, and data of its own."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, threshold=2.0
        )  # never good enough
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}

    def train_dataloader(self) -> Any:
        data = Data()
        data.setup("fit")
        return data.train_dataloader()

    val_dataloader = train_dataloader


def test_a_scheduler_that_waits_is_lightnings_to_step(tmp_path: Path) -> None:
    ours = compat.Trainer(Waiting(), arguments(tmp_path, **EPOCHS, load_best_model_at_end=False))
    ours.train()
    rates = [entry["learning_rate"] for entry in ours.state.log_history if "learning_rate" in entry]
    assert rates[5::6] == pytest.approx([0.1, 0.01, 0.001])


def test_a_module_trains_on_an_hf_dataset(tmp_path: Path) -> None:
    class Wraps(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression()

        def training_step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return self.model(**batch)

    # Without optimizers of its own it is given HF's.
    torch.manual_seed(0)
    theirs = transformers.Trainer(Regression(), arguments(tmp_path), train_dataset=rows())
    theirs.train()
    torch.manual_seed(0)
    ours = compat.Trainer(Wraps(), arguments(tmp_path, gradient_accumulation_steps=1), train_dataset=rows())
    ours.train()
    assert [entry["loss"] for entry in ours.state.log_history[:3]] == [
        entry["loss"] for entry in theirs.state.log_history[:3]
    ]
    assert all(map(torch.equal, ours.model.parameters(), theirs.model.parameters()))
    with pytest.raises(ArgumentError, match="`model=Wraps`: it has no `validation_step`"):
        ours.evaluate(rows())


class Watched(Classifier):
    """With hooks of its own, and data that it sets up itself."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(f"setup {stage}")
        self.data = Data()
        self.data.setup(stage)

    def train_dataloader(self) -> Any:
        return self.data.train_dataloader()

    def on_before_backward(self, loss: torch.Tensor) -> None:
        self.calls.append("before backward")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 7

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.calls.append(f"loaded {checkpoint['mine']}")


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_its_hooks_and_its_files_are_its_own(tmp_path: Path) -> None:
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    own = ModelCheckpoint(tmp_path, "own", every_n_train_steps=1)
    ours = compat.Trainer(Watched(width=9), arguments(tmp_path, **options), callbacks=[own])
    ours.train()
    assert ours.model.calls == ["prepare_data", "setup fit", "train 0", "before backward", "epoch 0 step 1"]
    file = str(tmp_path / "own.ckpt")
    loaded = Watched.load_from_checkpoint(file, weights_only=True)
    assert loaded.hparams["width"] == 9
    assert loaded.calls == ["loaded 7"]
    assert all(map(torch.equal, loaded.state_dict().values(), ours.model.state_dict().values()))

    again = compat.Trainer(Watched(), arguments(tmp_path / "again", max_steps=2))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "loaded 7" in again.model.calls
    further = compat.Trainer(Watched(), arguments(tmp_path / "further", max_steps=2))
    further.train(resume_from_checkpoint=file)
    assert all(map(torch.equal, again.model.parameters(), further.model.parameters()))


def test_what_it_logs_of_a_validation_is_hfs_to_log(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    options = {**EPOCHS, "num_train_epochs": 1, "lightning": {"logger": logger}}
    compat.Trainer(Classifier(), arguments(tmp_path, **options), train_dataset=Data()).train()
    with open(f"{logger.log_dir}/metrics.csv") as file:
        names = file.readline().strip().split(",")
    assert [name for name in names if "acc" in name] == ["eval/acc"]
    assert "train_loss" in names


def test_metrics_of_hfs_are_computed_of_what_it_returns(tmp_path: Path) -> None:
    class Returns(Classifier):
        def validation_step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            logits = self.net(batch["x"])
            return {"loss": logits.mean(), "logits": logits}

    samples = [{"x": row["x"], "labels": torch.tensor(1)} for row in rows(5)]

    def count(prediction: Any) -> dict[str, float]:
        return {"seen": len(prediction.predictions), "ones": float(prediction.label_ids.sum())}

    ours = compat.Trainer(Returns(), arguments(tmp_path), eval_dataset=samples, compute_metrics=count)
    metrics = ours.evaluate()
    assert (metrics["eval_seen"], metrics["eval_ones"]) == (5, 5.0)
    silent = compat.Trainer(Classifier(), arguments(tmp_path), train_dataset=Data(), compute_metrics=count)
    with pytest.raises(ArgumentError, match=r"`Classifier\.validation_step` returns nothing"):
        silent.evaluate()


def test_arguments_without_effect_are_told(tmp_path: Path) -> None:
    ours = compat.Trainer(Classifier(), arguments(tmp_path, learning_rate=3.0), train_dataset=Data())
    with mock.patch("compat.trainer.components.user_module.logger.warning") as warned:
        ours.train()
    (text,) = warned.call_args.args
    assert "`learning_rate=3.0`, `per_device_train_batch_size=2`: without effect" in text
    with pytest.raises(ArgumentError, match=r"`neftune_noise_alpha=5`: acts within models of Hugging Face's"):
        compat.Trainer(Classifier(), arguments(tmp_path, neftune_noise_alpha=5), train_dataset=Data())


def test_a_finder_looks_for_its_own_attribute(tmp_path: Path) -> None:
    class Rated(Classifier):
        learning_rate = 0.1

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            return ((self.net(batch["x"]) - batch["labels"]) ** 2).mean()

    finder = LearningRateFinder(min_lr=1e-3, num_training_steps=25, early_stop_threshold=None)
    model = Rated()
    compat.Trainer(model, arguments(tmp_path), train_dataset=rows(32), callbacks=[finder]).train()
    assert model.learning_rate == finder.optimal_lr.suggestion()


class Two(Classifier):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net.parameters(), lr=0.1) for _ in range(2)]


class Steps(Classifier):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None: ...


class Silent(Classifier):
    def training_step(self, batch: Batch) -> None: ...


class OfTheOther(pytorch_lightning.LightningModule):
    def training_step(self, batch: Batch) -> torch.Tensor: ...


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Steps, r"`model=Steps`: it overrides `optimizer_step` \(the optimizer steps where HF's window ends"),
        (OfTheOther, "Write `from lightning.pytorch import LightningModule`"),
        (pl.LightningModule, "it has no `training_step`"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(tmp_path: Path, model: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        compat.Trainer(model(), arguments(tmp_path), train_dataset=Data())


def test_a_loss_of_hfs_is_refused(tmp_path: Path) -> None:
    def summed(outputs: Any, labels: Any, num_items_in_batch: Any) -> Any: ...

    told = (
        "`compute_loss_func=summed`: `Classifier` is a LightningModule, and its `training_step` returns the "
        "loss. Leave it out, and compute the loss there."
    )
    with pytest.raises(ArgumentError) as raised:
        compat.Trainer(Classifier(), arguments(tmp_path), train_dataset=Data(), compute_loss_func=summed)
    assert str(raised.value) == told


def test_a_step_without_a_loss_is_refused(tmp_path: Path) -> None:
    ours = compat.Trainer(Silent(), arguments(tmp_path), train_dataset=Data())
    with pytest.raises(ArgumentError, match="`training_step` returned NoneType"):
        ours.train()


def test_several_optimizers_are_for_manual_optimization(tmp_path: Path) -> None:
    told = "returns 2 optimizers and 0 schedulers; automatic optimization has one of each.*step them in"
    with pytest.raises(ArgumentError, match=told):
        compat.Trainer(Two(), arguments(tmp_path), train_dataset=Data()).train()


def test_several_loaders_are_refused(tmp_path: Path) -> None:
    class Several(Data):
        def val_dataloader(self) -> Any:
            return [super().val_dataloader()] * 2

    ours = compat.Trainer(Classifier(), arguments(tmp_path), train_dataset=Several())
    with pytest.raises(ArgumentError, match=r"`Several\.val_dataloader`: an HF Trainer takes one DataLoader"):
        ours.evaluate()


def test_the_module_around_a_model_of_hfs_stands_for_it(tmp_path: Path) -> None:
    model = Regression()
    module = compat.HFModule(model, arguments(tmp_path))
    assert compat.Trainer(module, arguments(tmp_path), train_dataset=rows()).model is model
