"""`HFModule` and `HFDataModule` in a plain Lightning Trainer, held against `transformers.Trainer`."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
import transformers

import compat
from tests.parity.parts import data, metrics, models
from tests.parity.record import isolated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*no `val_dataloader`")

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    # Dropout shows each misplaced draw; 26 rows by 4 make windows of 3, 3 and 1.
    "dropout": (models.sleeping_regression, data.regression, {"gradient_accumulation_steps": 3}),
    "random data": (models.noisy_regression, data.noisy, {"gradient_accumulation_steps": 2}),
    "tokens": (models.gpt2, data.text, {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1}),
    "tokens, smoothed": (
        models.gpt2,
        data.text,
        {"gradient_accumulation_steps": 3, "label_smoothing_factor": 0.2, "neftune_noise_alpha": 5.0},
    ),
    "bf16": (models.bert, data.sentences, {"bf16": True, "label_smoothing_factor": 0.1}),
    "sampler": (
        models.bert,
        data.sentences,
        {
            "train_sampling_strategy": "group_by_length",
            "dataloader_drop_last": True,
            "data_seed": 7,
            "full_determinism": False,
        },
    ),
    "columns": (
        models.noisy_regression,
        data.table,
        {"optim": "adafactor", "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1},
    ),
    "steps": (models.noisy_regression, data.regression, {"max_steps": 9, "gradient_accumulation_steps": 4}),
    "stream": (models.regression, data.stream, {"max_steps": 6, "gradient_accumulation_steps": 7}),
    "checkpointed": (models.bert, data.sentences, {"activation_checkpointing": True, "max_steps": 3}),
}
"""Name → model, training data and arguments."""


OLDER = {
    "train_sampling_strategy": ("group_by_length", True),
    "activation_checkpointing": ("gradient_checkpointing", True),
}
"""What transformers 4 calls some of them."""


def arguments(folder: Path, kind: Any = compat.TrainingArguments, **options: Any) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    options = dict(OLDER[name] if name not in known else (name, value) for name, value in options.items())
    given = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(**{**given, **options})


def lightning(args: Any, **options: Any) -> pl.Trainer:
    """A Lightning Trainer with the flags that say what the arguments say."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{**compat.plan(args).flags, **quiet, "enable_model_summary": False, **options})


def collator(rows: Callable[[], Any]) -> Any:
    return data.pad if rows is data.text else None


def weights(model: nn.Module) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_hfs_trainer(tmp_path: Path, case: str) -> None:
    build, rows, options = CASES[case]
    torch.manual_seed(3)
    theirs = build()
    ours = copy.deepcopy(theirs)
    torch.manual_seed(4)
    with isolated(forgiving=True):
        args = arguments(tmp_path, transformers.TrainingArguments, **options)
        transformers.Trainer(theirs, args, train_dataset=rows(), data_collator=collator(rows)).train()

    torch.manual_seed(5)
    args = arguments(tmp_path, **options)
    trainer = lightning(args)
    module = compat.HFModule(ours, args)
    trainer.fit(module, datamodule=compat.HFDataModule(args, rows(), data_collator=collator(rows)))
    assert weights(ours) == weights(theirs)


class Noting(pl.Callback):
    """Keeps what each evaluation has logged, and the learning rate after it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics
            self.seen.append({name: float(v) for name, v in logged.items() if name.startswith("eval_")})


@pytest.mark.parametrize("schedule", ["linear", "reduce_lr_on_plateau"])
def test_evaluations_are_those_of_hfs_trainer(tmp_path: Path, schedule: str) -> None:
    # 10 rows by 4: the last batch is a short one.
    options = {
        "eval_strategy": "epoch",
        "num_train_epochs": 4,
        "learning_rate": 0.5,
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": {"patience": 0} if schedule != "linear" else {},
        "metric_for_best_model": "loss",
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    parts = {"compute_metrics": metrics.accuracy}
    torch.manual_seed(3)
    theirs = models.bert()
    ours = copy.deepcopy(theirs)
    train, valid = data.sentences(), data.sentences(10, seed=1)
    with isolated(forgiving=True):
        args = arguments(tmp_path, transformers.TrainingArguments, **options)
        hf = transformers.Trainer(theirs, args, train_dataset=train, eval_dataset=valid, **parts)
        hf.train()
    expected = [
        {name: entry[name] for name in ("eval_loss", "eval_accuracy")}
        for entry in hf.state.log_history
        if "eval_loss" in entry
    ]
    args, noting = arguments(tmp_path, **options), Noting()
    trainer = lightning(args, callbacks=[noting])
    module = compat.HFModule(ours, args, **parts)
    loaders = compat.HFDataModule(args, train, valid, valid)
    trainer.fit(module, datamodule=loaders)
    assert weights(ours) == weights(theirs)
    assert trainer.optimizers[0].param_groups[0]["lr"] == hf.optimizer.param_groups[0]["lr"]
    assert [
        {name: pytest.approx(value, rel=1e-7) for name, value in entry.items()} for entry in expected
    ] == noting.seen

    (tested,) = trainer.test(module, datamodule=loaders, verbose=False)
    assert tested["test_loss"] == pytest.approx(expected[-1]["eval_loss"], rel=1e-7)
    predicted = trainer.predict(module, datamodule=loaders)
    logits = torch.cat([logits for _, logits, _ in predicted])
    assert logits.tolist() == hf.predict(valid).predictions.tolist()


def test_with_hfs_control_it_logs_what_hfs_trainer_logs(tmp_path: Path) -> None:
    options = {
        "gradient_accumulation_steps": 3,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "learning_rate": 0.1,
    }
    torch.manual_seed(3)
    theirs = models.gpt2()
    ours = copy.deepcopy(theirs)
    train, valid = data.text(), data.text(10, seed=1)
    with isolated(forgiving=True):
        args = arguments(tmp_path, transformers.TrainingArguments, **options)
        hf = transformers.Trainer(
            theirs, args, train_dataset=train, eval_dataset=valid, data_collator=data.pad
        )
        hf.train()
    args = arguments(tmp_path, **options)
    flow = compat.callbacks.to_lightning([transformers.DefaultFlowCallback()], args=args)
    trainer = lightning(args, callbacks=[flow], num_sanity_val_steps=0)
    trainer.fit(
        compat.HFModule(ours, args),
        datamodule=compat.HFDataModule(args, train, valid, data_collator=data.pad),
    )
    assert weights(ours) == weights(theirs)
    for name in ("step", "epoch", "loss", "learning_rate", "grad_norm", "eval_loss"):
        told, expected = ([entry.get(name) for entry in run.log_history] for run in (flow.state, hf.state))
        if name == "loss" and transformers.__version__.startswith("4"):
            # It rounds what it logs.
            told = [value if value is None else round(value, 4) for value in told]
        assert told == expected, name
