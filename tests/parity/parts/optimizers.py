"""Optimizers, schedulers and loss functions that users pass in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR


class Moded(torch.optim.SGD):
    """An optimizer with modes, as the schedule-free ones have: evaluation sees other weights."""

    def train(self) -> None:
        """Show the weights that are trained."""
        self._show(1.0)

    def eval(self) -> None:
        """Show the weights that are evaluated."""
        self._show(0.5)

    @torch.no_grad()
    def _show(self, scale: float) -> None:
        shown = self.param_groups[0].get("shown", 1.0)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            parameter.mul_(scale / shown)
        self.param_groups[0]["shown"] = scale


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def both(model: nn.Module) -> dict[str, Any]:
    """An optimizer with its scheduler."""
    optimizer = _sgd(model)
    return {"optimizers": (optimizer, StepLR(optimizer, 3))}


def alone(model: nn.Module) -> dict[str, Any]:
    """An optimizer whose scheduler is left to the Trainer."""
    return {"optimizers": (_sgd(model), None)}


def plateau(model: nn.Module) -> dict[str, Any]:
    """An optimizer with a scheduler that waits for a metric."""
    optimizer = _sgd(model)
    return {"optimizers": (optimizer, ReduceLROnPlateau(optimizer, patience=0, threshold=1.0))}


def with_modes(model: nn.Module) -> dict[str, Any]:
    """An optimizer that has to be told of training and evaluation."""
    return {"optimizers": (Moded(model.parameters(), lr=0.05), None)}


def summed_token_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None):
    """Cross entropy of shifted tokens over the items of the window."""
    logits, targets = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = nn.functional.cross_entropy(logits, targets, reduction="sum")
    return total / num_items_in_batch if num_items_in_batch is not None else total


def summed_square_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None):
    """Squared error over the items of the window."""
    total = (outputs["logits"] - labels).square().sum()
    return total / num_items_in_batch if num_items_in_batch is not None else total
