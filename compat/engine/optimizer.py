"""The optimizer that a training script sees: it steps only when gradients are in sync."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from compat.engine.optimizer_state import per_parameter

if TYPE_CHECKING:
    from collections import defaultdict
    from collections.abc import Callable

    import torch
    from accelerate.state import GradientState
    from torch.optim.lr_scheduler import LRScheduler


def has_step(optimizer: Optimizer) -> bool:
    """Whether an optimizer has a step; LOMO's optimizers update the weights in the backward, and have none.

    Args:
        optimizer: the optimizer itself, not a wrapper.
    """
    # torch wraps the method when the first instance of a class is created.
    return inspect.unwrap(type(optimizer).step) is not inspect.unwrap(Optimizer.step)


def has_modes(optimizer: object) -> bool:
    """Whether an optimizer has train and eval modes, as schedule-free optimizers do."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


class SyncedOptimizer(Optimizer):
    """Wraps an optimizer, and skips its step in the middle of an accumulation window.

    A script may call `self.optimizer.step()` in each micro-step of its own `training_step`, and rely on most
    of these calls to do nothing. Mirrors `accelerate.optimizer.AcceleratedOptimizer`.

    Args:
        optimizer: the optimizer that steps.
        gradient_state: accelerate's, whose `sync_gradients` tells whether the micro-step in progress ends
            its window.
    """

    def __init__(self, optimizer: Optimizer, gradient_state: GradientState) -> None:
        # The base constructor would create its own parameter groups; these are the optimizer's.
        self.optimizer = optimizer
        self._gradient_state = gradient_state
        self._has_step = has_step(optimizer)
        self.step_was_skipped = False

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameter groups, with their learning rates."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> defaultdict[torch.Tensor, Any]:  # type: ignore[override]
        """The state of each parameter."""
        return self.optimizer.state

    @state.setter
    def state(self, state: defaultdict[torch.Tensor, Any]) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The options that a parameter group starts from."""
        return self.optimizer.defaults

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if not self._gradient_state.sync_gradients:
            return None
        if not self._has_step:
            # torch's schedulers check whether the optimizer has stepped before them.
            self.optimizer._opt_called = True  # type: ignore[attr-defined]
            return None if closure is None else closure()
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        if self._gradient_state.sync_gradients:
            self.optimizer.zero_grad(set_to_none=set_to_none)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    def __getattr__(self, name: str) -> Any:
        # Only the optimizer itself knows whether it has modes (`train`, `eval`) and other methods of its own.
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __eq__(self, other: object) -> bool:
        # Lightning checks that it knows a scheduler's optimizer, wrapped or not.
        return other is self or other is self.optimizer

    def __hash__(self) -> int:
        return hash(self.optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __repr__(self) -> str:
        return repr(self.optimizer)


class ClosureFirst(SyncedOptimizer):
    """Wraps an optimizer in a user's Lightning Trainer, which passes it the training step as a closure.

    Layerwise optimizers would not call the closure, and optimizers with modes check their mode before it.
    """

    @staticmethod
    def is_needed(optimizer: Optimizer) -> bool:
        """Whether an optimizer would not run the closure correctly."""
        return bool(per_parameter(optimizer)) or has_modes(optimizer)

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        result = None if closure is None else closure()
        super().step()
        return result


def take_in_new_groups(optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Extend a scheduler to the parameter groups that a callback has added to its optimizer.

    HF's schedulers multiply, and keep the learning rate that the callback gives a new group; any other
    scheduler treats it as the group's initial learning rate.

    Args:
        optimizer: with the groups.
        scheduler: with a learning rate for each group that it knows.
    """
    rates = getattr(scheduler, "base_lrs", None)
    if rates is None:
        return
    for place, group in enumerate(optimizer.param_groups[len(rates) :], len(rates)):
        if isinstance(scheduler, LambdaLR):
            rates.append(1.0)
            scheduler.lr_lambdas.append(_kept_by(optimizer, place))
        else:
            rates.append(group.setdefault("initial_lr", group["lr"]))


def _kept_by(optimizer: Optimizer, place: int) -> Callable[[int], float]:
    # A function, because the state of a scheduler omits functions.
    def rate(_: int) -> float:
        return float(optimizer.param_groups[place]["lr"])

    return rate
