"""A small model with small data, for tests that look at the engine rather than at numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import compat


class Regression(nn.Module):
    """Predicts one number from four, with dropout so that the mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(3, 1)
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.modes.append(self.training)
        logits = self.out(self.dropout(self.hidden(x)))
        if labels is None:
            return {"logits": logits}
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}


def rows(count: int = 12) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(4, generator=generator), "labels": torch.randn(1, generator=generator)}
        for _ in range(count)
    ]


def arguments(folder: Any, **options: Any) -> compat.TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return compat.TrainingArguments(**{**defaults, **options})


PARTS = (
    "model",
    "callbacks",
    "compute_metrics",
    "data_collator",
    "eval_dataset",
    "optimizers",
    "processing_class",
    "train_dataset",
)
"""What a trainer is given beside its arguments."""


def trainer(folder: Any, kind: type[compat.Trainer] | None = None, **options: Any) -> compat.Trainer:
    torch.manual_seed(0)
    parts = {name: options.pop(name) for name in PARTS if name in options}
    parts = {"model": Regression(), "train_dataset": rows(), "eval_dataset": rows(5), **parts}
    return (kind or compat.Trainer)(args=arguments(folder, **options), **parts)


def losses(trainer: compat.Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer: compat.Trainer) -> list[list[float]]:
    return [parameter.flatten().tolist() for parameter in trainer.model.parameters()]
