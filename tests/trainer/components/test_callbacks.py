"""What Lightning's callbacks do in an HF-style Trainer."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any
from unittest import mock

import lightning.pytorch as lightning
import pytest
import pytorch_lightning
import torch
import torchmetrics
import transformers
from lightning.pytorch import accelerators, profilers, strategies
from lightning.pytorch import callbacks as pl
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import environments
from safetensors.torch import load_file
from torch import nn
from transformers.trainer_utils import EvalLoopOutput

from compat import Trainer
from compat.callbacks import to_hf, to_lightning
from compat.callbacks.misplaced import OF_NO_PLACE
from compat.engine import build
from compat.errors import ArgumentError
from compat.trainer.components.finders import find
from tests.small import Regression, losses, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path

    import compat

BY_STEPS = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 10}
BY_EPOCHS = {"max_steps": -1, "num_train_epochs": 4}


def trained(folder: Path, *callbacks: Any, **options: Any) -> compat.Trainer:
    ours = trainer(folder, callbacks=list(callbacks), **options)
    ours.train()
    return ours


def logged(ours: compat.Trainer) -> list[dict[str, str]]:
    (logger,) = ours.lightning.loggers
    with open(f"{logger.log_dir}/metrics.csv") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def with_logger(folder: Path) -> dict[str, Any]:
    return {"lightning": {"logger": CSVLogger(folder / "logs")}}


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return ((self.net(batch["x"]) - batch["labels"]) ** 2).mean()

    training_step = validation_step


class Normed(Regression):
    """With statistics of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.out(self.norm(self.hidden(x)))
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}


@pytest.mark.parametrize(
    ("monitor", "options", "stops_at"),
    [
        ("eval_loss", BY_STEPS, 2),
        ("eval_loss", {**BY_EPOCHS, "eval_strategy": "epoch"}, 12),
        ("loss", BY_EPOCHS, 12),
    ],
)
def test_early_stopping(tmp_path: Path, monitor: str, options: dict[str, Any], stops_at: int) -> None:
    # Losses fall, which is for the worse here.
    stopping = pl.EarlyStopping(monitor, patience=1, mode="max", min_delta=10.0)
    ours = trained(tmp_path, stopping, **options)
    assert ours.state.global_step == stops_at
    assert stopping.wait_count == 1
    log = [entry[monitor] for entry in ours.state.log_history if monitor in entry]
    assert stopping.best_score.item() == pytest.approx(log[0] if options is BY_STEPS else stopping.best_score)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_model_checkpoint(tmp_path: Path) -> None:
    options = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2}
    best = pl.ModelCheckpoint(tmp_path / "best", monitor="eval_loss", save_top_k=2)
    steps = pl.ModelCheckpoint(tmp_path / "steps", "{step}", save_top_k=-1, every_n_train_steps=2)
    ours = trained(tmp_path / "out", best, steps, **options)
    scores = {entry["step"]: entry["eval_loss"] for entry in ours.state.log_history if "eval_loss" in entry}
    assert sorted(score.item() for score in best.best_k_models.values()) == pytest.approx(
        sorted(scores.values())[:2]
    )
    assert sorted(file.name for file in (tmp_path / "steps").iterdir()) == [
        f"step={step}.ckpt" for step in (2, 4, 6)
    ]
    again = trainer(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "steps" / "step=2.ckpt"))
    assert weights(again) == weights(ours)
    assert losses(again) == losses(ours)


def test_learning_rate_monitor(tmp_path: Path) -> None:
    ours = trained(tmp_path, pl.LearningRateMonitor("step"), max_steps=3, **with_logger(tmp_path))
    found = logged(ours)
    rates = {int(row["step"]): float(row["lr-AdamW/pg1"]) for row in found if "lr-AdamW/pg1" in row}
    # Before the first step no step lies behind.
    assert rates == pytest.approx({0: 5e-5, 1: 5e-5 * 2 / 3, 2: 5e-5 / 3})
    of_hf = {int(row["step"]): float(row["train/loss"]) for row in found if "train/loss" in row}
    assert of_hf == {step + 1: loss for step, loss in enumerate(losses(ours))}
    assert {name for row in found for name in row if name.startswith("lr-")} == {
        "lr-AdamW/pg1",
        "lr-AdamW/pg2",
    }


@pytest.mark.parametrize("kind", [pl.RichProgressBar, pl.TQDMProgressBar])
def test_progress_bars(tmp_path: Path, kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    totals: list[Any] = []

    class Watched(kind):
        def on_validation_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            super().on_validation_batch_end(trainer, *args, **kwargs)
            totals.append((self.total_train_batches, self.total_val_batches_current_dataloader))

    bar = Watched()
    ours = trained(tmp_path, bar, disable_tqdm=False, eval_strategy="steps", eval_steps=2, max_steps=4)
    assert totals == [(6, 1)] * 2
    shown = bar.get_metrics(ours.lightning, ours.lightning_module)
    assert shown["loss"] == losses(ours)[-1]
    assert "eval_loss" in shown
    assert not any("runtime" in name or "per_second" in name for name in shown)
    names = [type(callback).__name__ for callback in ours.callback_handler.callbacks]
    assert names == ["DefaultFlowCallback"], "one bar is enough"
    printed = capsys.readouterr()
    assert "Epoch 0" in printed.out + printed.err


class EvaluatesItself(Trainer):
    """A subclass whose evaluation is all its own."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        return EvalLoopOutput(None, None, {"eval_loss": float(self.state.global_step)}, 1)


def test_an_evaluation_of_a_subclass_is_one_to_callbacks(tmp_path: Path) -> None:
    best = pl.ModelCheckpoint(tmp_path / "best", monitor="eval_loss")
    options = {"kind": EvaluatesItself, **BY_STEPS}
    ours = trained(tmp_path / "out", pl.EarlyStopping("eval_loss", patience=1), best, **options)
    assert ours.state.global_step == 2
    assert best.best_model_score == 1.0


def test_early_stopping_waits_for_a_late_evaluation(tmp_path: Path) -> None:
    options = {**BY_EPOCHS, "eval_strategy": "epoch", "eval_delay": 2}
    ours = trained(tmp_path, pl.EarlyStopping("eval_loss", patience=1), **options)
    assert ours.state.global_step == 24


def test_a_callback_that_is_added_in_the_middle_is_called(tmp_path: Path) -> None:
    seen: list[int] = []
    late = pl.LambdaCallback(on_train_batch_start=lambda run, *_: seen.append(run.global_step))

    class Adds(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                ours.add_callback(late)

    ours = trainer(tmp_path, callbacks=[Adds()], max_steps=4)
    ours.train()
    assert seen == [2, 3]


def test_timer(tmp_path: Path) -> None:
    timer = pl.Timer(duration={"seconds": 0})
    assert trained(tmp_path, timer, max_steps=9).state.global_step == 1
    assert timer.time_elapsed("train") > 0


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize("model", [Regression, Normed])
def test_stochastic_weight_averaging(tmp_path: Path, model: type[nn.Module]) -> None:
    seen: list[list[torch.Tensor]] = []
    rates: list[float] = []

    def note(run: Any, module: Any) -> None:
        seen.append([parameter.detach().clone() for parameter in module.parameters()])
        rates.append(run.optimizers[0].param_groups[0]["lr"])

    averaging = pl.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=2)
    torch.manual_seed(0)
    ours = trained(
        tmp_path, averaging, pl.LambdaCallback(on_train_epoch_start=note), model=model(), **BY_EPOCHS
    )
    mean = [torch.stack(values).mean(0) for values in zip(*seen[1:4], strict=True)]
    torch.testing.assert_close(list(ours.model.parameters()), mean)
    assert rates[:4] == pytest.approx([5e-5, 3.75e-5, 0.00501875, 0.01]), "as under Lightning's own Trainer"
    said = [entry["learning_rate"] for entry in ours.state.log_history if "learning_rate" in entry]
    assert said[12::6] == pytest.approx(rates[2:4])
    assert (ours.state.global_step, ours.state.epoch) == (24, 4.0)
    if model is Normed:
        # An epoch is added in which nothing but statistics is learnt.
        features = torch.stack([ours.model.hidden(row["x"]) for row in rows()])
        torch.testing.assert_close(ours.model.norm.running_mean, features.mean(0))
        assert ours.model.norm.num_batches_tracked == 6


def test_weight_averaging_and_its_resumption(tmp_path: Path) -> None:
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    seen: list[list[torch.Tensor]] = []
    note = pl.LambdaCallback(
        on_train_batch_end=lambda run, module, *_: seen.append(
            [parameter.detach().clone() for parameter in module.parameters()]
        )
    )
    ours = trained(
        tmp_path, pl.EMAWeightAveraging(decay=0.5), note, save_steps=2, learning_rate=0.01, **options
    )
    average = seen[0]
    for values in seen[1:]:
        average = [0.5 * mean + 0.5 * value for mean, value in zip(average, values, strict=True)]
    torch.testing.assert_close(list(ours.model.parameters()), average)
    log = [entry["eval_loss"] for entry in ours.state.log_history if "eval_loss" in entry]
    assert log[-1] == ours.evaluate()["eval_loss"], "evaluated with averaged weights"
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(map(torch.equal, saved.values(), (ours.model.state_dict()[name] for name in saved)))

    again = trainer(
        tmp_path / "again", callbacks=[pl.EMAWeightAveraging(decay=0.5)], learning_rate=0.01, **options
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert weights(again) == weights(ours)


def test_the_best_of_averaged_models_is_the_one_that_was_scored(tmp_path: Path) -> None:
    ours = trained(
        tmp_path,
        pl.EMAWeightAveraging(decay=0.5),
        learning_rate=0.5,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    assert ours.state.best_global_step != 6
    assert ours.evaluate()["eval_loss"] == ours.state.best_metric


def test_gradient_accumulation_scheduler(tmp_path: Path) -> None:
    schedule = {0: 1, 1: 2, 2: 4}
    options = {"max_steps": -1, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1}
    ours = trained(tmp_path, pl.GradientAccumulationScheduler(dict(schedule)), **options)
    epochs = [entry["epoch"] for entry in ours.state.log_history if "loss" in entry]
    assert epochs == pytest.approx([step / 6 for step in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 18)])
    assert ours.state.max_steps == ours.state.global_step == 11
    assert ours.args.gradient_accumulation_steps == 1
    saved = torch.load(tmp_path / "checkpoint-11" / "training_args.bin", weights_only=False)
    assert saved.gradient_accumulation_steps == 1

    again = trainer(
        tmp_path / "again", callbacks=[pl.GradientAccumulationScheduler(dict(schedule))], **options
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert weights(again) == weights(ours)
    with pytest.raises(ArgumentError, match="`gradient_accumulation_steps=2`: GradientAccumulationScheduler"):
        trained(
            tmp_path / "both",
            pl.GradientAccumulationScheduler(dict(schedule)),
            gradient_accumulation_steps=2,
        )


def test_monitors(tmp_path: Path) -> None:
    throughput = pl.ThroughputMonitor(lambda batch: batch["x"].shape[0], window_size=2)
    ours = trained(
        tmp_path, pl.DeviceStatsMonitor(cpu_stats=True), throughput, max_steps=4, **with_logger(tmp_path)
    )
    found = logged(ours)
    samples = {row["step"]: row["train/samples"] for row in found if "train/samples" in row}
    assert samples == {"1": "2", "2": "4", "3": "6", "4": "8"}
    assert any("DeviceStatsMonitor.on_train_batch_end/cpu_percent" in row for row in found)


def test_throughput_outside_of_fit(tmp_path: Path) -> None:
    class Counted(Regression):
        main_input_name = "x"

        def num_parameters(self, exclude_embeddings: bool = True) -> int:
            return sum(parameter.numel() for parameter in self.parameters())

        def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
            # What transformers 4 asks.
            return 6 * inputs["x"].numel() * self.num_parameters()

    model = Counted()
    throughput = pl.ThroughputMonitor(lambda batch: batch["x"].shape[0], window_size=2)
    ours = trainer(
        tmp_path,
        model=model,
        callbacks=[throughput],
        per_device_eval_batch_size=2,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        **with_logger(tmp_path),
    )
    seen: list[tuple[str, int]] = []

    def note(trainer: Any, module: Any, *_: Any) -> None:
        seen.append((trainer.state.stage.value, module.flops_per_batch))

    ours.add_callback(pl.LambdaCallback(on_train_batch_end=note, on_validation_batch_end=note))
    ours.evaluate()
    training, forward = 6 * 8 * 19, 2 * 8 * 19
    assert seen == [("validate", forward)] * 2 + [("validate", forward // 2)]
    seen.clear()
    ours.train()
    assert seen[:3] == [("train", training)] * 2 + [("validate", forward)]
    ours.predict(rows(4))
    seen.clear()
    ours.evaluate()
    assert seen[:2] == [("validate", forward)] * 2


def test_throughput_of_a_module_of_the_users(tmp_path: Path) -> None:
    throughput = pl.ThroughputMonitor(lambda batch: batch["x"].shape[0], window_size=2)
    with pytest.warns(UserWarning, match="define a `flops_per_batch`"):
        trainer(tmp_path, model=Module(), callbacks=[throughput], **with_logger(tmp_path)).evaluate()
    counted = Module()
    counted.flops_per_batch = 7
    run = trainer(tmp_path, model=counted, callbacks=[throughput], **with_logger(tmp_path))
    run.evaluate()
    assert run.lightning_module.flops_per_batch == 7


LIGHTNINGS = {
    "batch-size-finder": lambda folder: pl.BatchSizeFinder(max_trials=1, steps_per_trial=1),
    "checkpoint": lambda folder: pl.ModelCheckpoint(folder / "best", monitor="eval_loss"),
    "device-stats": lambda folder: pl.DeviceStatsMonitor(cpu_stats=True),
    "early-stopping": lambda folder: pl.EarlyStopping("eval_loss"),
    "ema": lambda folder: pl.EMAWeightAveraging(),
    "learning-rate": lambda folder: pl.LearningRateMonitor(),
    "on-exception": pl.OnExceptionCheckpoint,
    "pruning": lambda folder: pl.ModelPruning("l1_unstructured", amount=0.1),
    "progress": lambda folder: pl.TQDMProgressBar(),
    "scheduler": lambda folder: pl.GradientAccumulationScheduler({0: 1}),
    "spike": lambda folder: SpikeDetection(),
    "summary": lambda folder: pl.ModelSummary(),
    "swa": lambda folder: pl.StochasticWeightAveraging(1e-2),
    "throughput": lambda folder: pl.ThroughputMonitor(lambda batch: len(batch["x"]), window_size=2),
    "timer": lambda folder: pl.Timer(),
}


# Lightning's own, of callbacks that fit by themselves or average by epochs.
@pytest.mark.filterwarnings("ignore:Found 4 module.s. in eval mode", "ignore:SWA is currently")
@pytest.mark.parametrize("name", LIGHTNINGS)
def test_lightnings_callbacks_outside_of_fit(tmp_path: Path, name: str) -> None:
    plain = trainer(tmp_path / "plain")
    expected, predicted = plain.evaluate()["eval_loss"], plain.predict(rows(4)).predictions
    ours = trainer(
        tmp_path,
        callbacks=[LIGHTNINGS[name](tmp_path)],
        eval_strategy="steps",
        eval_steps=2,
        **with_logger(tmp_path),
    )
    assert ours.evaluate()["eval_loss"] == expected
    assert (ours.predict(rows(4)).predictions == predicted).all()
    ours.train()
    last = ours.evaluate()["eval_loss"]
    assert ours.predict(rows(5)).metrics["test_loss"] == last


def test_a_callback_that_does_not_take_back_its_state_is_named(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer(tmp_path, callbacks=[SpikeDetection()], **options).train()
    again = trainer(tmp_path, callbacks=[SpikeDetection()], **options)
    message = r"SpikeDetection does not take back.*lightning_callbacks.*Resume without SpikeDetection"
    with pytest.raises(ArgumentError, match=message):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    without = trainer(tmp_path, **options)
    with pytest.warns(UserWarning, match="SpikeDetection"):
        without.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert without.state.global_step == 4


def test_summaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lightning.pytorch"):
        trained(tmp_path, pl.ModelSummary(max_depth=2), pl.RichModelSummary(max_depth=2), max_steps=1)
    assert "model.hidden" in capsys.readouterr().out
    assert "model.hidden" in caplog.text


def test_on_exception_checkpoint(tmp_path: Path) -> None:
    class Crash(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                msg = "crash"
                raise ValueError(msg)

    expected = trained(tmp_path / "expected", max_steps=4)
    with pytest.raises(ValueError, match="crash"):
        trained(tmp_path / "out", pl.OnExceptionCheckpoint(tmp_path), Crash(), max_steps=4)
    assert (tmp_path / "on_exception.ckpt").exists()
    ours = trained(tmp_path / "out", pl.OnExceptionCheckpoint(tmp_path), max_steps=4)
    assert weights(ours) == weights(expected)
    assert not (tmp_path / "on_exception.ckpt").exists()


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.head(self.backbone(x)) - labels) ** 2).mean()}


def test_backbone_finetuning(tmp_path: Path) -> None:
    seen: list[tuple[torch.Tensor, list[float]]] = []

    def note(run: Any, module: Any) -> None:
        groups = run.optimizers[0].param_groups
        seen.append((module.backbone.weight.detach().clone(), [group["lr"] for group in groups]))

    finetuning = pl.BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.001)
    ours = trained(
        tmp_path, finetuning, pl.LambdaCallback(on_train_epoch_end=note), model=TwoParts(), **BY_EPOCHS
    )
    (first, before), (second, after), *_ = seen
    assert torch.equal(first, seen[0][0])
    assert not torch.equal(first, second)
    assert (len(before), len(after)) == (2, 3)
    assert after[-1] == 0.001, "the callback sets it, and no schedule"
    assert ours.state.global_step == 24


@pytest.mark.parametrize("step", [4, 9])
def test_backbone_finetuning_is_resumed_ahead_of_thawing_and_behind_it(tmp_path: Path, step: int) -> None:
    def made(name: str) -> compat.Trainer:
        torch.manual_seed(0)
        finetuning = pl.BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.001)
        options = {"max_steps": 14, "save_strategy": "steps", "save_steps": step}
        return trainer(tmp_path / name, callbacks=[finetuning], model=TwoParts(), **options)

    whole, again = made("whole"), made("again")
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert weights(again) == weights(whole)
    assert losses(again) == losses(whole)


def test_both_kinds_in_their_order(tmp_path: Path) -> None:
    order: list[str] = []

    def of_lightning(name: str) -> pl.LambdaCallback:
        return pl.LambdaCallback(
            on_train_batch_end=lambda run, module, outputs, batch, index: order.append(
                f"{name} {run.global_step} {sorted(batch)}"
            )
        )

    def of_hf(name: str) -> transformers.TrainerCallback:
        def note(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            order.append(f"{name} {state.global_step}")

        return type(name, (transformers.TrainerCallback,), {"on_step_end": note})()

    mixed = [of_hf("A"), of_lightning("b"), of_hf("C"), of_lightning("d")]
    trained(tmp_path, *mixed, max_steps=1)
    assert order == ["b 1 ['labels', 'x']", "d 1 ['labels', 'x']", "A 1", "C 1"]


NOT_CALLED = {
    "on_sanity_check_start": "`eval_on_start` takes its place",
    "on_sanity_check_end": "`eval_on_start` takes its place",
    "on_exception": "nothing has failed",
    "on_load_checkpoint": "nothing is resumed",
    **{
        f"on_test_{what}": "HF's test is its `predict`"
        for what in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")
    },
}
"""Hooks of Lightning's callbacks that the run below has no reason to call."""


def test_every_hook_is_called(tmp_path: Path) -> None:
    hooks = {name for name in vars(pl.Callback) if name.startswith("on_") or name in {"setup", "teardown"}}
    called: set[str] = set()
    every = {name: lambda self, *args, name=name, **kwargs: called.add(name) for name in hooks}
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    ours = trained(tmp_path, type("Every", (pl.Callback,), every)(), max_steps=1, **options)
    ours.predict(rows(2))
    assert called == hooks - set(NOT_CALLED)


def test_what_a_callback_logs_stands_on_hfs_axis(tmp_path: Path) -> None:
    class Logs(pl.Callback):
        def on_train_batch_end(self, run: Any, module: Any, *args: Any) -> None:
            module.log("seen", float(run.global_step))

        def on_validation_end(self, run: Any, module: Any) -> None:
            run.logger.log_metrics({"validated": float(run.callback_metrics["eval_loss"])}, run.global_step)

    ours = trained(
        tmp_path, Logs(), max_steps=2, eval_strategy="steps", eval_steps=1, **with_logger(tmp_path)
    )
    found = logged(ours)
    assert {row["step"]: row["seen"] for row in found if "seen" in row} == {"1": "1.0", "2": "2.0"}
    evaluated = {row["step"]: row["eval/loss"] for row in found if "eval/loss" in row}
    validated = {row["step"]: row["validated"] for row in found if "validated" in row}
    assert {step: float(value) for step, value in validated.items()} == pytest.approx(
        {step: float(value) for step, value in evaluated.items()}
    )
    assert [row["train/loss"] for row in found if "train/loss" in row] == list(map(str, losses(ours)))


def test_an_evaluation_of_several_datasets_is_one_validation(tmp_path: Path) -> None:
    calls: list[str] = []
    hooks = ("start", "epoch_start", "epoch_end", "end")
    note = pl.LambdaCallback(
        **{
            f"on_validation_{hook}": lambda *_, hook=hook: calls.append(hook)
            for hook in (*hooks, "batch_end")
        }
    )
    stopping = pl.EarlyStopping("eval_b_loss", patience=0, min_delta=10.0)
    data = {"a": rows(3), "b": rows(5)}
    ours = trained(tmp_path, note, stopping, eval_dataset=data, **BY_STEPS)
    once = ["start", "epoch_start", "batch_end", "batch_end", "epoch_end", "end"]
    assert calls == once * 2
    assert ours.state.global_step == 2


def test_finders(tmp_path: Path) -> None:
    data = {"train_dataset": rows(32)}
    rate = pl.LearningRateFinder(min_lr=1e-3, num_training_steps=25, early_stop_threshold=None)
    size = pl.BatchSizeFinder(max_trials=2, steps_per_trial=1)
    ours = trained(tmp_path / "found", rate, size, **data)
    assert ours.args.learning_rate == rate.optimal_lr.suggestion() != 5e-5
    assert ours.args.per_device_train_batch_size == size.optimal_batch_size == 4
    assert list((tmp_path / "found").iterdir()) == []
    found = {"learning_rate": ours.args.learning_rate, "per_device_train_batch_size": 4}
    assert weights(trained(tmp_path / "given", **found, **data)) == weights(ours)

    again = trainer(tmp_path / "again", **data)
    ours.save_state()
    find(again, [pl.BatchSizeFinder()], str(tmp_path / "found"))
    assert again.args.per_device_train_batch_size == 4, "what is resumed is not searched again"


def test_each_trial_of_a_search_begins_afresh(tmp_path: Path) -> None:
    stopping = pl.EarlyStopping("eval_loss", patience=1, mode="max", min_delta=10.0)
    ours = trainer(tmp_path, callbacks=[stopping], **BY_STEPS)
    stops = []
    for _ in range(2):
        ours._callbacks.begin_trial()
        ours.train()
        stops.append(ours.state.global_step)
    assert stops == [2, 2]


def test_add_pop_and_remove_know_both_kinds(tmp_path: Path) -> None:
    timer, flow = pl.Timer(), transformers.EarlyStoppingCallback(3)
    ours = trainer(tmp_path, callbacks=[timer, flow])
    ours.add_callback(pl.LambdaCallback)
    ours.add_callback(transformers.PrinterCallback())
    assert type(ours.pop_callback(pl.LambdaCallback)) is pl.LambdaCallback
    assert ours.pop_callback(pl.LambdaCallback) is None
    assert ours.pop_callback(transformers.EarlyStoppingCallback) is flow
    _ = ours.lightning
    ours.add_callback(stops := pl.Callback())
    assert stops in ours.lightning.callbacks
    ours.remove_callback(timer)
    assert timer not in ours.lightning.callbacks
    ours.remove_callback(stops)
    assert stops not in ours.lightning.callbacks


def test_what_was_wrapped_for_another_trainer_is_unwrapped(tmp_path: Path) -> None:
    stopping, of_hf = pl.EarlyStopping("eval_loss"), transformers.EarlyStoppingCallback(2)
    ours = trainer(tmp_path, callbacks=[to_hf(stopping), to_lightning([of_hf, transformers.PrinterCallback])])
    assert ours._callbacks.lightning == (stopping,)
    assert of_hf in ours.callback_handler.callbacks


def test_a_run_without_lightnings_callbacks_pays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    attach = build.attach_session

    def watched(run: Any, session: Any) -> None:
        attach(run, session)
        seen.append(session.is_observed)

    monkeypatch.setattr("compat.trainer.components.fit.attach_session", watched)
    trained(tmp_path, **with_logger(tmp_path))
    trained(tmp_path, pl.Callback())
    assert seen == [False, True]


class OfTheOther(pytorch_lightning.Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, run: Any, module: Any, *args: Any) -> None:
        self.steps.append(run.global_step)


def test_a_callback_of_the_other_distribution_is_used(tmp_path: Path) -> None:
    callback = OfTheOther()
    ours = trained(tmp_path, callback, max_steps=2)
    assert callback.steps == [1, 2]
    assert ours.pop_callback(callback) is callback


@pytest.mark.parametrize("made", [pytorch_lightning.callbacks.Timer(), pytorch_lightning.callbacks.Timer])
def test_a_callback_that_the_other_distribution_ships_is_refused(tmp_path: Path, made: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Write `from lightning\.pytorch\.callbacks import Timer`"):
        trainer(tmp_path, callbacks=[made])


def test_a_state_that_could_run_code_is_not_kept(tmp_path: Path) -> None:
    class Pickled(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"kept": Regression}

    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    with mock.patch("compat.trainer.components.callbacks.logger.warning") as warned:
        trained(tmp_path, Pickled(), **options)
    assert "holds tests.small.Regression, which is not loaded again" in warned.call_args.args[0]
    assert not (tmp_path / "checkpoint-1" / "lightning_callbacks.pth").exists()


class NoRows(lightning.LightningDataModule):
    """A data module without data."""


def told(epoch: int) -> None:
    """Do nothing, as a function that someone takes for a callback."""


MISPLACED = {
    "CSVLogger": (lambda: CSVLogger("."), "Name it in `args.report_to`, or give `lightning={'logger': …}`."),
    "SimpleProfiler": (profilers.SimpleProfiler, "Give `lightning={'profiler': …}`."),
    "DDPStrategy": (strategies.DDPStrategy, "Give its name as `lightning={'strategy': …}`."),
    "CPUAccelerator": (accelerators.CPUAccelerator, "Give its name as `lightning={'accelerator': …}`."),
    "LightningEnvironment": (environments.LightningEnvironment, "Give `lightning={'plugins': […]}`."),
    "NoRows": (NoRows, "Give `train_dataset=…`."),
    "SumMetric": (torchmetrics.SumMetric, "Give `compute_metrics=…`."),
    "Regression": (Regression, "Give `model=…`."),
    "SGD": (lambda: torch.optim.SGD(Regression().parameters()), "Give `optimizers=(optimizer, scheduler)`."),
    "told": (lambda: told, OF_NO_PLACE),
    "str": (lambda: "EarlyStopping", OF_NO_PLACE),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_what_is_no_callback_is_sent_to_its_place(tmp_path: Path, name: str) -> None:
    make, place = MISPLACED[name]
    one = make()
    expected = f"^{re.escape(f'`callbacks=[{name}]`: no callback. {place}')}$"
    with pytest.raises(ArgumentError, match=expected):
        trainer(tmp_path, callbacks=[transformers.PrinterCallback, one])
    with pytest.raises(ArgumentError, match=expected):
        trainer(tmp_path).add_callback(one)
    if isinstance(one, lightning.loggers.Logger):
        with pytest.raises(ArgumentError, match=expected):
            trainer(tmp_path, callbacks=[type(one)])


def test_a_callback_of_hfs_is_none_of_lightnings_flags(tmp_path: Path) -> None:
    expected = "^`lightning.callbacks=.EarlyStoppingCallback.`: a callback of Hugging Face's. Give `call"
    with pytest.raises(ArgumentError, match=expected):
        trainer(tmp_path, lightning={"callbacks": [transformers.EarlyStoppingCallback()]})
    with pytest.raises(
        ArgumentError, match=r"^`lightning.callbacks=\[SimpleProfiler\]`: no callback. Give `light"
    ):
        trainer(tmp_path, lightning={"callbacks": [profilers.SimpleProfiler()]})


def test_any_object_with_hfs_events_is_a_callback(tmp_path: Path) -> None:
    kept = {name: getattr(transformers.TrainerCallback, name) for name in dir(transformers.TrainerCallback)}
    duck = type("Duck", (), {name: kept[name] for name in kept if name.startswith("on_")})()
    assert duck in trained(tmp_path, duck).callback_handler.callbacks
