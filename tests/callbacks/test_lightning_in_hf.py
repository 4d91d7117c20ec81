from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import transformers
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)

import compat
from compat.callbacks import EVENTS, to_hf
from compat.errors import ArgumentError
from tests.small import Regression, rows

if TYPE_CHECKING:
    from pathlib import Path


def train(folder: Path, *callbacks: Any, kind: Any = transformers.Trainer, **options: Any) -> Any:
    defaults = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    args = compat.TrainingArguments(str(folder), **{**defaults, **options})
    trainer = kind(Regression(), args, train_dataset=rows(), eval_dataset=rows(3), callbacks=list(callbacks))
    trainer.train()
    return trainer


LOSSES = [5.0, 4.0, 4.5, 4.25, 3.0, 3.5, 3.25, 3.75, 2.0, 1.0, 0.5, 0.25]


class Scripted(transformers.Trainer):
    found = 0

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics["eval_loss"] = LOSSES[self.found]
        self.found += 1
        return output


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_early_stopping_stops_hfs_trainer(tmp_path: Path, strategy: str) -> None:
    stopping = EarlyStopping("eval_loss", patience=3)
    options = {"eval_strategy": strategy, "num_train_epochs": 2 if strategy == "steps" else 12}
    trainer = train(tmp_path, to_hf(stopping), kind=Scripted, **options)
    assert trainer.found == 8
    assert trainer.state.global_step == (8 if strategy == "steps" else 8 * 6)
    assert (stopping.wait_count, stopping.best_score.item()) == (3, 3.0)
    assert stopping.stopped_epoch == (1 if strategy == "steps" else 7)


def test_without_evaluations_it_watches_at_the_end_of_epochs(tmp_path: Path) -> None:
    stopping = EarlyStopping("loss", patience=0, min_delta=10.0)
    trainer = train(tmp_path, to_hf(stopping), eval_strategy="no", num_train_epochs=6)
    assert trainer.state.global_step == 12


def test_a_metric_that_is_missing_is_lightnings_own_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"val_loss.*eval_loss"):
        train(tmp_path, to_hf(EarlyStopping("val_loss")))


def test_a_timer_stops_hfs_trainer(tmp_path: Path) -> None:
    timer = Timer({"seconds": 0.5})
    slow = LambdaCallback(on_train_batch_start=lambda *_: time.sleep(0.3))
    trainer = train(tmp_path, to_hf(slow), to_hf(timer))
    assert trainer.state.global_step == 2
    assert timer.time_elapsed("train") >= 0.06
    assert timer.time_elapsed("validate") > 0


class Watches(pl.Callback):
    """A user's own callback with every hook that HF's events call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []


def watching(name: str) -> Any:
    def watch(self, trainer, pl_module, *args, **kwargs):
        numbers = [value for value in args if isinstance(value, (int, str))]
        self.calls.append((name, trainer.global_step, trainer.current_epoch, *numbers))
        self.trainer, self.module = trainer, pl_module

    return watch


HOOKS = {hook for event in EVENTS for hook in event.hooks}
for name in HOOKS:
    setattr(Watches, name, watching(name))


def test_hooks_come_in_lightnings_order(tmp_path: Path) -> None:
    watches = Watches()
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "max_steps": 2}
    trainer = train(tmp_path, to_hf(watches), **options, eval_steps=2)
    step = [
        ("on_train_batch_start", 0),
        ("on_train_batch_end", 0),
        ("on_train_batch_start", 1),
        ("on_before_optimizer_step",),
        ("on_train_batch_end", 1),
    ]
    second = [(name, *(number + 2 for number in numbers)) for name, *numbers in step]
    called = [(name, *numbers) for name, _, _, *numbers in watches.calls]
    assert called == [
        ("setup", "fit"),
        ("on_fit_start",),
        ("on_train_start",),
        ("on_train_epoch_start",),
        *step,
        *second,
        ("on_validation_start",),
        ("on_validation_epoch_start",),
        ("on_validation_batch_end", 0),
        ("on_validation_batch_end", 1),
        ("on_validation_epoch_end",),
        ("on_validation_end",),
        ("on_train_epoch_end",),
        ("on_train_end",),
        ("on_fit_end",),
        ("teardown", "fit"),
    ]
    run, module = watches.trainer, watches.module
    assert (run.global_step, run.max_steps, run.max_epochs, run.num_training_batches) == (2, 2, 1, 6)
    assert run.callback_metrics["eval_loss"].item() == pytest.approx(
        trainer.state.log_history[-2]["eval_loss"]
    )
    assert module.hidden is trainer.model.hidden
    assert (module.device, module.global_step) == (trainer.args.device, 2)
    watches.calls.clear()
    trainer.evaluate()
    assert [call[0] for call in watches.calls] == ["on_validation_epoch_end", "on_validation_end"]
    assert watches.trainer.state.fn == "validate"
    trainer.predict(rows(2))
    assert watches.calls[-1][0] == "on_predict_end"


def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    def uses(what: str) -> Any:
        def use(trainer, pl_module, outputs, batch, batch_idx):
            eval(what)  # noqa: S307

        return to_hf(LambdaCallback(on_train_batch_end=use))

    for what, named in {
        "batch['x']": "`batch`",
        "outputs.loss": "`outputs`",
        "trainer.fit_loop": "`trainer.fit_loop`",
        "trainer.save_checkpoint('x')": "`trainer.save_checkpoint`",
        "pl_module.log('x', 1)": "`pl_module.log`",
        "setattr(trainer, 'limit_val_batches', 0)": "`trainer.limit_val_batches` that can be set",
    }.items():
        with pytest.raises(
            AttributeError, match=f"{named} does not exist in HF's Trainer. Use `compat.Trainer"
        ):
            train(tmp_path, uses(what), max_steps=1, eval_strategy="no")


class Backward(pl.Callback):
    def on_before_backward(self, trainer, pl_module, loss):
        pass

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        pass


REFUSED = {
    "hooks without events": (
        Backward,
        "`to_hf.Backward.`.*on_before_backward, on_save_checkpoint.*compat.Trainer",
    ),
    "a checkpoint": (ModelCheckpoint, "`to_hf.ModelCheckpoint.`.*on_exception.*compat.Trainer"),
    "weights": (
        lambda: StochasticWeightAveraging(0.1),
        "`to_hf.StochasticWeightAveraging.`.*own loops.*compat",
    ),
    "a logger": (LearningRateMonitor, "`to_hf.LearningRateMonitor.`.*compat.Trainer"),
    "layers": (BackboneFinetuning, "`to_hf.BackboneFinetuning.`.*compat.Trainer"),
    "one of HF's": (
        transformers.PrinterCallback,
        "`to_hf.PrinterCallback.`: no `lightning.pytorch.Callback`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ArgumentError, match=message):
        to_hf(make())


def test_the_other_distribution_is_told_what_to_import() -> None:
    other = pytest.importorskip("pytorch_lightning")
    with pytest.raises(ArgumentError, match=r"Import it from `lightning\.pytorch`"):
        to_hf(other.callbacks.Timer())


def test_state_that_hfs_checkpoints_do_not_have_is_told(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "eval_strategy": "no"}
    train(tmp_path, **options)
    args = compat.TrainingArguments(
        str(tmp_path),
        **{**options, "max_steps": 3},
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=2,
        dataloader_pin_memory=False,
    )
    watches = Watches()
    callbacks = [to_hf(EarlyStopping("loss")), to_hf(watches)]
    resumed = transformers.Trainer(Regression(), args, train_dataset=rows(), callbacks=callbacks)
    with pytest.warns(UserWarning, match="EarlyStopping.*begins afresh"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert ("on_train_batch_start", 2, 0, 2) in watches.calls
