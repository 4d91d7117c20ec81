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


class Layerwise(torch.optim.Optimizer):
    """As HF makes it: a stand-in beside optimizers that the backward steps."""

    def __init__(self, model: nn.Module) -> None:
        self.optimizer_dict = {
            parameter: torch.optim.Adam([parameter], lr=0.1) for parameter in model.parameters()
        }
        super().__init__([torch.zeros(1)], {"lr": 0.1})
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self.hook)

    def hook(self, parameter: nn.Parameter) -> None:
        self.optimizer_dict[parameter].step()
        self.optimizer_dict[parameter].zero_grad()

    def step(self, closure: Any = None) -> None: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


class InGroups(torch.optim.SGD):
    """Keeps its momentum in its groups, by parameter."""

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            kept = group.setdefault("momenta", {})
            for parameter in group["params"]:
                if parameter.grad is not None:
                    kept[parameter] = 0.9 * kept.get(parameter, 0.0) + parameter.grad
                    parameter.data.add_(kept[parameter], alpha=-group["lr"])


class Fused(torch.optim.Optimizer):
    """As LOMO: it has no step, and updates the weights in the backward at the rate that it is told."""

    def __init__(self, model: nn.Module, lr: float = 1e-3) -> None:
        super().__init__(model.parameters(), {"lr": lr})

    def fused_backward(self, loss: torch.Tensor, lr: float) -> None:
        """Run the backward, and update."""
        loss.backward()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(parameter.grad, alpha=-lr)
                parameter.grad = None


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
