"""Trains a module that optimizes manually in each process, with `compat` or with Lightning alone.

Started by torchrun with the name of the Trainer and a folder; each process writes its final weights there.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Subset

import compat
from tests.gan import GAN, Data, made
from tests.small import arguments

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Shard(Data):
    """Every other batch, as HF's loaders deal them out."""

    def train_dataloader(self) -> Any:
        size, count = 4, len(self.samples)
        places = [n for n in range(count) if n // size % SIZE == RANK]
        return DataLoader(Subset(self.samples, places), batch_size=size)


class Accumulates(GAN):
    """Steps one optimizer on every other batch, and reduces gradients there alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        closes = batch_idx % 2 == 1
        _, optimizer = self.optimizers()
        with optimizer.toggle_model(sync_grad=closes):
            loss = self.judge(batch[0], is_real=True)
            self.manual_backward(loss / 2)
        if closes:
            optimizer.step()
            optimizer.zero_grad()
        return loss


def train(by: str, kind: type[GAN], folder: Path) -> GAN:
    model = made(kind)
    torch.manual_seed(1 + RANK)
    if by == "compat":
        args = arguments(folder / "run", max_steps=-1, num_train_epochs=2)
        trainer = compat.Trainer(model, args, train_dataset=Data())
        torch.manual_seed(1 + RANK)
        trainer.train()
        return model
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    plain = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=SIZE,
        strategy="ddp_find_unused_parameters_true",
        use_distributed_sampler=False,
        limit_val_batches=0,
        **dict.fromkeys(silent, False),
    )
    plain.fit(model, datamodule=Shard())
    return model


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for kind in (GAN, Accumulates):
        trained = train(sys.argv[1], kind, Path(sys.argv[2]))
        torch.save(trained.state_dict(), Path(sys.argv[2], f"{kind.__name__}-{RANK}.pt"))
