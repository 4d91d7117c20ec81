"""A run that has ended itself is over: started again it does what is left of its end, and trains no more."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.utils import logging

import compat
from tests.small import arguments, trainer, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch"}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
LONG = {"max_steps": 40, "learning_rate": 0.0, "seed": 0}
"""Nothing gets better."""


class Stops(TrainerCallback):
    """Stops the run at one of its events."""

    def __init__(self, event: str, step: int) -> None:
        setattr(self, event, self.stop)
        self.step = step

    def stop(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


class Killed(BaseException):
    """The process has died."""


class Kills(TrainerCallback):
    """Kills the run when it has saved a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def patience() -> Any:
    return EarlyStoppingCallback(2)


def lightnings(**options: Any) -> Any:
    return EarlyStopping("eval_loss", patience=2, **options)


CASES: dict[str, tuple[dict[str, Any], Callable[[], Any], int]] = {
    "steps": ({**STEPS, **BEST}, patience, 12),
    "epochs": ({**EPOCHS, **BEST}, patience, 18),
    "lightning's, steps": (STEPS, lightnings, 12),
    "lightning's, epochs": (EPOCHS, lightnings, 18),
    "lightning's, epochs, best": ({**EPOCHS, **BEST}, lightnings, 18),
    "lightning's, after validation": (
        EPOCHS,
        lambda: lightnings(check_on_train_epoch_end=False),
        18,
    ),
    "at a step": (STEPS, lambda: Stops("on_step_end", 8), 8),
    "at an epoch's end": (EPOCHS, lambda: Stops("on_epoch_end", 12), 12),
    "at a save": (STEPS, lambda: Stops("on_save", 8), 8),
    "between saves": ({**STEPS, "save_steps": 8, "metric_for_best_model": "loss"}, patience, 12),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_over(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    options, callback, last = CASES[name]

    def made(*more: Any) -> compat.Trainer:
        return trainer(tmp_path / "run", callbacks=[callback(), *more], **options, **LONG)

    whole = made()
    whole.train(resume_from_checkpoint="auto")
    assert whole.state.global_step == last
    for _ in range(2):
        again = made()
        again.train(resume_from_checkpoint="auto")
        assert_same_end(again, whole)

    shutil.rmtree(tmp_path / "run")
    saved = 8 if name == "between saves" else last
    with pytest.raises(Killed):
        # The last callback that is told of the save; what the others have said to it is lost with it.
        made(Kills(saved)).train()
    if name != "at a save":
        killed = made()
        killed.train(resume_from_checkpoint="auto")
        assert_same_end(killed, whole)


def assert_same_end(ours: compat.Trainer, whole: compat.Trainer) -> None:
    assert ours.state.global_step == whole.state.global_step
    assert ours.state.epoch == whole.state.epoch
    assert weights(ours) == weights(whole)
    assert ours.state.best_model_checkpoint == whole.state.best_model_checkpoint

    def logged(trainer: compat.Trainer) -> list[dict[str, Any]]:
        entries = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
        return [
            {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
            for entry in entries
        ]

    assert logged(ours) == logged(whole)


def test_it_says_so_and_can_be_trained_on(tmp_path: Path) -> None:
    options = {**STEPS, **BEST, **LONG}
    trainer(tmp_path, callbacks=[patience()], **options).train()
    again = trainer(tmp_path, callbacks=[patience()], **options)
    messages: list[str] = []
    logger = logging.get_logger("transformers.trainer")
    logger.warning, warning = messages.append, logger.warning
    try:
        again.train(resume_from_checkpoint="auto")
    finally:
        logger.warning = warning
    assert any("has ended itself after update step 12 of 40, and is over" in message for message in messages)
    further = trainer(tmp_path, callbacks=[patience()], **options)
    further.train(resume_from_checkpoint=True)
    assert further.state.global_step > 12


def test_a_finished_run_may_be_made_longer(tmp_path: Path) -> None:
    trainer(tmp_path, **{**STEPS, "max_steps": 4}).train(resume_from_checkpoint="auto")
    longer = trainer(tmp_path, **{**STEPS, "max_steps": 8})
    longer.train(resume_from_checkpoint="auto")
    assert longer.state.global_step == 8


def test_a_stop_that_is_decided_in_a_save_is_noted_when_saving_goes_on_beside(tmp_path: Path) -> None:
    options = {**STEPS, **LONG, "lightning": {"save_async": True}}
    for _ in range(2):
        ours = trainer(tmp_path, callbacks=[Stops("on_save", 8)], **options)
        ours.train(resume_from_checkpoint="auto")
        assert ours.state.global_step == 8


def test_looking_at_a_run_that_is_over_leaves_its_checkpoint_alone(tmp_path: Path) -> None:
    options = {**STEPS, "save_steps": 1, "max_steps": 12}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()

    def stopped() -> compat.Trainer:
        return trainer(tmp_path / "run", callbacks=[Stops("on_step_end", 4)], **options)

    stopped().train()
    stopped().train(resume_from_checkpoint="auto")
    further = trainer(tmp_path / "run", **options)
    further.train(resume_from_checkpoint=True)
    assert further.state.global_step == 12
    assert weights(further) == weights(whole)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_that_came_to_its_last_step_within_an_epoch_is_over(tmp_path: Path, size: int) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8, "gradient_accumulation_steps": size}

    def made(**more: Any) -> compat.Trainer:
        return trainer(tmp_path, **{**options, **more})

    whole = made()
    whole.train(resume_from_checkpoint="auto")
    for _ in range(2):
        again = made()
        again.train(resume_from_checkpoint="auto")
        assert_same_end(again, whole)
    (tmp_path / "checkpoint-8" / "data_state.pth").unlink()
    (tmp_path / "checkpoint-8" / "compat_manifest.json").unlink()
    again = made()
    again.train(resume_from_checkpoint="auto")
    assert_same_end(again, whole)
    shorter = made(max_steps=6)
    shorter.train(resume_from_checkpoint="auto")
    assert shorter.state.global_step == 8
    assert weights(shorter) == weights(whole)


class Waits(pl.LightningModule):
    """With a schedule that waits for a metric."""

    def __init__(self, interval: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.interval = torch.nn.Linear(2, 1), interval
        self.rates: list[float] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("seen", loss)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=2.0)
        monitor = "val_loss" if self.interval == "epoch" else "seen"
        config = {"scheduler": scheduler, "monitor": monitor, "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.arange(12.0).reshape(6, 2)), batch_size=2)

    val_dataloader = train_dataloader


@pytest.mark.parametrize(
    ("interval", "options", "step"),
    [
        ("epoch", {"save_strategy": "epoch"}, 3),
        ("epoch", {"save_strategy": "steps", "save_steps": 3}, 3),
        ("step", {"save_strategy": "steps", "save_steps": 2}, 2),
        ("step", {"save_strategy": "epoch"}, 3),
    ],
)
def test_schedules_that_wait_go_on_where_they_were(
    tmp_path: Path, interval: str, options: dict[str, Any], step: int
) -> None:
    asked = {"max_steps": 9, "eval_strategy": "epoch", **options}
    whole = compat.Trainer(Waits(interval), arguments(tmp_path / "whole", **asked))
    whole.train()
    again = compat.Trainer(Waits(interval), arguments(tmp_path / "again", **asked))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert len(set(whole.model.rates)) > 2
    assert again.model.rates == whole.model.rates[step:]
    assert weights(again) == weights(whole)
