"""A GAN that optimizes manually, as users write them for a Trainer of Lightning's."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Batch = list[torch.Tensor]

BATCHES = 6
"""Batches of an epoch."""


class GAN(pl.LightningModule):
    """Two optimizers with a scheduler each; the generator's batch norm and noise have states, too."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.calls: list[str] = []

    def judge(self, samples: torch.Tensor, *, is_real: bool) -> torch.Tensor:
        logits = self.discriminator(samples)
        return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        of_generator, of_discriminator = self.optimizers()
        real, noise = batch[0], torch.randn(len(batch[0]), 2, device=self.device)

        self.toggle_optimizer(of_generator)
        of_generator.zero_grad()
        loss = self.judge(self.generator(noise), is_real=True)
        self.manual_backward(loss)
        self.clip_gradients(of_generator, gradient_clip_val=0.5)
        of_generator.step()
        self.untoggle_optimizer(of_generator)

        of_discriminator.zero_grad()
        fake = self.judge(self.generator(noise).detach(), is_real=False)
        self.manual_backward(self.judge(real, is_real=True) + fake)
        of_discriminator.step()

        first, second = self.lr_schedulers()
        first.step()
        if self.trainer.is_last_batch:
            second.step()
        self.log("fake", fake)
        self.calls.append(f"{batch_idx} {self.global_step}")
        return {"loss": loss, "real": len(real)}

    def validation_step(self, batch: Batch) -> None:
        self.log("val_loss", self.judge(batch[0], is_real=True))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if outputs is not None:
            self.calls.append(f"{sorted(outputs)}")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls.append(type(optimizer).__name__)

    def configure_optimizers(self) -> Any:
        generator = torch.optim.Adam(self.generator.parameters(), lr=0.02)
        discriminator = torch.optim.SGD(self.discriminator.parameters(), lr=0.1, momentum=0.9)
        schedulers = [
            torch.optim.lr_scheduler.ExponentialLR(generator, 0.9),
            {"scheduler": torch.optim.lr_scheduler.StepLR(discriminator, 1, 0.5), "interval": "epoch"},
        ]
        return [generator, discriminator], schedulers


class Data(pl.LightningDataModule):
    def __init__(self, *, shuffle: bool = False) -> None:
        super().__init__()
        self.shuffle = shuffle

    def setup(self, stage: str) -> None:
        x = torch.randn(4 * BATCHES, 4, generator=torch.Generator().manual_seed(0))
        self.samples = TensorDataset(x)

    def train_dataloader(self) -> Any:
        return DataLoader(self.samples, batch_size=4, shuffle=self.shuffle)

    def val_dataloader(self) -> Any:
        return DataLoader(self.samples, batch_size=8)


def made(kind: type[GAN] = GAN) -> GAN:
    torch.manual_seed(0)
    return kind()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
