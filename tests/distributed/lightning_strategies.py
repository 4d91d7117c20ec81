"""One process of a plain Lightning Trainer with an HFModule: trains, and goes on within an epoch."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

import compat
from tests.parity.parts import data, models


class Sharded(compat.HFModule):
    def configure_model(self) -> None:
        fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


def whole(value: Any) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


def run(strategy: str, folder: Path, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    """Train for two epochs of three batches, in windows of two.

    Args:
        strategy: Lightning's name, or "fsdp2".
        folder: receives a checkpoint of each step of an uninterrupted run.
        checkpoint: the one that the run goes on from.

    Returns:
        The weights.
    """
    args = compat.TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=4,
        learning_rate=0.01,
        gradient_accumulation_steps=2,
        optim="adamw_torch",
        num_train_epochs=2,
        max_grad_norm=0.1,
        save_strategy="no",
    )
    sharded = strategy == "fsdp2"
    torch.manual_seed(3)
    module = (Sharded if sharded else compat.HFModule)(models.gpt2(), args)
    saving = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)]
    trainer = pl.Trainer(
        strategy=ModelParallelStrategy(2, 1) if sharded else strategy,
        devices=2,
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        callbacks=saving if checkpoint is None else [],
        enable_checkpointing=checkpoint is None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = compat.HFDataModule(args, data.text(24), data_collator=data.pad)
    trainer.fit(module, datamodule=loaders, ckpt_path=checkpoint)
    return {name: whole(value) for name, value in module.model.state_dict().items()}


def main(strategy: str, folder: Path) -> None:
    """Write the weights of an uninterrupted run, and of one that goes on after the first step."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs = [run(strategy, folder)]
    if strategy != "ddp_fork":
        runs.append(run(strategy, folder, folder / "step=1.ckpt"))
    torch.save(runs, folder / "weights.pt")
    # See `worker.py`.
    time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
