"""Trains on the stand-in device by other ways than HF's Trainer, each beside its reference; prints JSON."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.devices import stand_in  # isort: skip (ahead of transformers)

import accelerate
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import compat
from compat.cli import main
from compat.engine.any_device import trainer_flags
from compat.fabric.accelerator import FabricAccelerator
from tests import gan
from tests.devices.cases import COMMANDS, PRECISIONS, SCALES
from tests.devices.runs import OPTIONS, Classifier, rows, trainer_of, weights
from tests.parity.record import isolated

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

LIGHT = {**OPTIONS, "eval_strategy": "no", "save_strategy": "no", "per_device_eval_batch_size": 4}
"""Arguments without what only HF's Trainer does."""


def begin() -> None:
    """Begin the random numbers of the device, and those of the CPU, afresh."""
    torch.manual_seed(3)
    stand_in.GENERATOR.own.manual_seed(3)


# An HFModule in a Lightning Trainer, beside HF's Trainer.


def hf(folder: Path, scale: float, **options: Any) -> dict[str, Any]:
    trainer = trainer_of("transformers", folder, scale, **options)
    trainer.train()
    lr = trainer.optimizer.param_groups[0]["lr"]
    return {"weights": weights(trainer.model), "lr": lr}


def hf_module(folder: Path, scale: float, **options: Any) -> dict[str, Any]:
    args = compat.TrainingArguments(str(folder), **{**OPTIONS, **options})

    def fit(path: str | None, **callbacks: Any) -> dict[str, Any]:
        data = rows()
        module = compat.HFModule(Classifier(scale), args)
        flags = {**compat.plan(args).flags, **QUIET, "val_check_interval": 3, "num_sanity_val_steps": 0}
        trainer = pl.Trainer(**trainer_flags(args.device, flags), **callbacks)
        trainer.fit(module, datamodule=compat.HFDataModule(args, data, data[:10]), ckpt_path=path)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        return {"weights": weights(module.model), "lr": lr}

    saving = ModelCheckpoint(str(folder), filename="{step}", every_n_train_steps=3, save_top_k=-1)
    found = fit(None, callbacks=[saving])
    again = fit(str(folder / "step=3.ckpt"), enable_checkpointing=False)
    return {**found, "resumed": again}


class Module(compat.HFModule):
    def __init__(self, args: compat.TrainingArguments, scale: float = 1.0) -> None:
        rows()  # the weights are those that follow them
        super().__init__(Classifier(scale), args)


class Data(compat.HFDataModule):
    def __init__(self, args: compat.TrainingArguments) -> None:
        super().__init__(args, rows())


def by_command(folder: Path, scale: float, **options: Any) -> dict[str, Any]:
    given = {**OPTIONS, "eval_strategy": "no", **options, "output_dir": folder, "model.scale": scale}
    words = [f"--{name}={value}" for name, value in given.items()]
    command = compat.HFLightningCLI(Module, Data, args=["fit", *words])
    return {
        "weights": weights(command.model.model),
        "lr": command.trainer.optimizers[0].param_groups[0]["lr"],
    }


# A user's LightningModule as the model of a Trainer, beside `lightning.Trainer`.


class Classifying(pl.LightningModule):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.model = Classifier(scale)

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**batch)["loss"]

    def validation_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs = self.model(**batch)
        right = outputs["logits"].argmax(-1) == batch["labels"]
        self.log_dict({"val_loss": outputs["loss"], "val_accuracy": right.float().mean()})
        return outputs["loss"]

    def predict_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**batch)["logits"]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def train_dataloader(self) -> Any:
        return DataLoader(rows(), batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(rows()[:10], batch_size=4)

    predict_dataloader = val_dataloader


def by_lightning(build: Callable[[], pl.LightningModule], folder: Path, **options: Any) -> dict[str, Any]:
    args = compat.TrainingArguments(str(folder), **{**LIGHT, **options})
    begin()
    module = build()
    flags = {**compat.plan(args).flags, **QUIET, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    if not module.automatic_optimization:
        flags["gradient_clip_val"] = None
        flags["max_steps"] *= 2
    trainer = pl.Trainer(**trainer_flags(args.device, {**flags, "enable_checkpointing": False}))
    begin()
    datamodule = None if hasattr(module, "model") else gan.Data()
    trainer.fit(module, datamodule=datamodule)
    found = {"weights": weights(module)}
    if datamodule is None:
        validating = pl.Trainer(**trainer_flags(args.device, compat.plan(args).flags | QUIET))
        (logged,) = validating.validate(module, verbose=False)
        found["metrics"] = {name.removeprefix("val_"): value for name, value in logged.items()}
        predicted = validating.predict(module)
        found["predicted"] = torch.cat([each.cpu() for each in predicted]).tolist()
    return found


def by_compat(build: Callable[[], pl.LightningModule], folder: Path, **options: Any) -> dict[str, Any]:
    saving = {"save_strategy": "steps", "save_steps": 3}

    def fit(checkpoint: str | None) -> tuple[compat.Trainer, dict[str, Any]]:
        args = compat.TrainingArguments(str(folder), **{**LIGHT, **saving, **options})
        begin()
        module = build()
        data = None if hasattr(module, "model") else gan.Data()
        trainer = compat.Trainer(module, args, train_dataset=data)
        begin()
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer, {"weights": weights(module)}

    trainer, found = fit(None)
    _, again = fit(str(folder / "checkpoint-3"))
    if hasattr(trainer.model, "model"):
        metrics = trainer.evaluate()
        found["metrics"] = {name: metrics[f"eval_{name}"] for name in ("loss", "accuracy")}
        found["predicted"] = trainer.predict(rows()[:10]).predictions.tolist()
    return {**found, "resumed": again}


# Loops that users write.


def stepped(accelerator: Any, scale: float) -> dict[str, Any]:
    begin()
    # Moving it later would make other parameters: a disguised tensor cannot take the place of one of the CPU.
    model = Classifier(scale).to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(rows(), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    begin()
    losses = []
    for batch in itertools.islice(loader, 6):
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return {"weights": weights(model), "losses": losses}


def faces(place: Path) -> dict[str, Any]:
    """Name → the outcome of the face and of its reference, in this order."""
    found: dict[str, list[Any]] = {}

    def compare(name: str, *runs: Callable[[Path], dict[str, Any]]) -> None:
        found[name] = []
        for number, run in enumerate(runs):
            with isolated():
                begin()
                found[name].append(run(place / f"{name}-{number}"))

    for name, options in PRECISIONS.items():
        scale = SCALES.get(name, 1.0)
        compare(
            f"HFModule, {name}",
            lambda folder, o=options, s=scale: hf_module(folder, s, **o),
            lambda folder, o=options, s=scale: hf(folder, s, **o),
        )
        compare(
            f"compat fit, {name}",
            lambda folder, o=options, s=scale: by_command(folder, s, **o),
            lambda folder, o=options, s=scale: hf(folder, s, **o, eval_strategy="no"),
        )
        compare(
            f"LightningModule, {name}",
            lambda folder, o=options, s=scale: by_compat(lambda: Classifying(s), folder, **o),
            lambda folder, o=options, s=scale: by_lightning(lambda: Classifying(s), folder, **o),
        )
        precision = "fp16" if options.get("fp16") else "no"
        compare(
            f"Fabric, {name}",
            lambda _, p=precision, s=scale: stepped(FabricAccelerator(mixed_precision=p), s),
            lambda _, p=precision, s=scale: stepped(accelerate.Accelerator(mixed_precision=p), s),
        )
    compare(
        "manual optimization",
        lambda folder: by_compat(gan.made, folder),
        lambda folder: by_lightning(gan.made, folder),
    )
    return found


def commands() -> dict[str, tuple[int, str]]:
    """Command → its status and what it prints."""
    found = {}
    for words in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            status = main(words.split())
        found[words] = (status, stdout.getvalue())
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {"commands": commands(), "faces": faces(Path(folder))}
        print("RESULTS " + json.dumps(found))
