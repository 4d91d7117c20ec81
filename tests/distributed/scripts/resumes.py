"""Two processes: what a run sees and learns when it is resumed, and what a LightningModule evaluates to.

`resumes.py FOLDER` writes what each process has found to `RANK.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

import compat

STEPS, EPOCH = 14, 6
AT = (2, 6, 8, 13)
"""Within an epoch and at its end, the first epoch and later ones."""


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {"x": torch.tensor([float(index)]), "labels": torch.tensor([0.0])}


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.drop, self.seen = torch.nn.Linear(1, 1), torch.nn.Dropout(0.2), []

    def forward(self, x, labels=None):
        self.seen.append(x.flatten().tolist())
        return {"loss": ((self.line(self.drop(x)) - labels) ** 2).mean()}


class Own(compat.Trainer):
    """With a sampler that has a generator, put into accelerate's hands."""

    def get_train_dataloader(self):
        sampler = torch.utils.data.RandomSampler(Rows(), generator=torch.Generator().manual_seed(5))
        return self.accelerator.prepare(DataLoader(Rows(), batch_size=2, sampler=sampler))


def arguments(folder, **options):
    return compat.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **options,
    )


def train(kind, folder, resumes=None, **options):
    torch.manual_seed(0)
    args = arguments(folder, max_steps=STEPS, save_steps=1, **options)
    trainer = kind(model=Line(), args=args, train_dataset=Rows())
    trainer.train(resume_from_checkpoint=resumes)
    return trainer.model.seen, [p.flatten().tolist() for p in trainer.model.parameters()]


def resumed(kind, folder, **options):
    seen, weights = train(kind, folder / "whole", **options)
    found = {"whole": [seen, weights]}
    for step in AT:
        again = train(kind, folder / f"from-{step}", str(folder / "whole" / f"checkpoint-{step}"), **options)
        found[str(step)] = [again[0], again[1], seen[step:], weights]
    return found


class Module(pl.LightningModule):
    """Its loss on a row is the row; its backbone stays in eval mode."""

    def __init__(self, returns):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Dropout(0.5))
        self.head, self.returns = torch.nn.Linear(1, 1), returns
        self.backbone.eval()
        self.modes = set()

    def training_step(self, batch):
        self.modes.add((self.training, self.backbone.training, self.head.training))
        return self.head(self.backbone(batch["x"])).pow(2).mean()

    def validation_step(self, batch):
        loss = batch["x"].mean()
        if not self.returns:
            self.log("val_loss", loss)
        return loss


def evaluated(folder, returns):
    torch.manual_seed(0)
    args = arguments(folder, max_steps=4, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=3)
    rows = [{"x": torch.tensor([float(index)])} for index in range(16)]
    trainer = compat.Trainer(Module(returns), args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    statistics = trainer.model.backbone[0].running_mean.tolist()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return {"losses": losses, "modes": sorted(trainer.model.modes), "statistics": statistics}


def main(folder):
    found = {
        "unseeded": resumed(
            compat.Trainer, folder / "unseeded", accelerator_config={"use_seedable_sampler": False}
        ),
        "own": resumed(Own, folder / "own"),
        "dispatched": resumed(
            compat.Trainer, folder / "dispatched", accelerator_config={"dispatch_batches": True}
        ),
        "returns": evaluated(folder / "returns", returns=True),
        "logs": evaluated(folder / "logs", returns=False),
    }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    # torch's gloo threads let go of the last tensors only while Python runs.
    time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
