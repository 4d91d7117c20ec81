"""LightningModules that hold a model of transformers', trained by the same numbers as under HF's Trainer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, get_linear_schedule_with_warmup

from tests.checkpoint.convert import made
from tests.distributed import sharded

if TYPE_CHECKING:
    from pathlib import Path

RATE, DECAY = 1e-2, 0.1
"""As `made.train` has them."""


class Module(pl.LightningModule):
    """Holds the model as `self.model`, and has the optimizer and schedule that HF's Trainer makes."""

    def __init__(self, model: Any, steps: int = made.STEPS) -> None:
        super().__init__()
        self.model, self.steps = model, steps
        self.shifts = model.config.model_type == "gpt2"
        self.losses: list[float] = []
        self.places: list[tuple[int, int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.places.append((self.current_epoch, batch_idx, self.global_step))
        # HF tells models that shift their labels how many there were before.
        told = {"num_items_in_batch": batch["labels"].numel()} if self.shifts else {}
        loss = self.model(**batch, **told).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        decayed = set(Trainer.get_decay_parameter_names(None, self.model))
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if (name in decayed) is is_decayed], "weight_decay": decay}
            for is_decayed, decay in ((True, DECAY), (False, 0.0))
        ]
        optimizer = torch.optim.AdamW(groups, lr=RATE)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Foreign(pl.LightningModule):
    """Holds the model under another name, beside something else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.net = model
        self.head = torch.nn.Linear(2, 2)

    training_step = Module.training_step


class Loader(DataLoader):
    """Goes on after the batches that were seen, as Lightning asks of a loader that has a state."""

    seen = 0

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]

    def __iter__(self) -> Any:
        seen, self.seen = self.seen, 0
        return itertools.islice(super().__iter__(), seen, None)


def fit(module: Any, folder: Path, checkpoint: Path | None = None, seen: int = 0, **options: Any) -> Any:
    """Train a module on rows in their order, without the first batches; gives the Trainer."""
    defaults = {
        "max_steps": made.STEPS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(**{**defaults, **options})
    loader = Loader(sharded.rows(16), batch_size=2)
    loader.load_state_dict({"seen": seen})
    trainer.fit(module, loader, ckpt_path=checkpoint and str(checkpoint))
    return trainer
