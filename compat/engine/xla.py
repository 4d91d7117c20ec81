"""XLA devices, which torch_xla drives lazily: operations are collected, and executed together on request."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from compat.engine.optimizer import SyncedOptimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from accelerate.state import GradientState
    from torch.optim import Optimizer


def mark_step() -> None:
    """Execute the operations that were collected since the last call.

    Each call also advances the random state of the device, so a run equals HF's only if it makes as many.
    """
    import torch_xla

    torch_xla.sync()


def reduce_gradients(optimizers: Iterable[Optimizer], state: GradientState) -> None:
    """Average the gradients over all processes, unless this was done since the last optimizer step.

    Nothing wraps a model on XLA, so no backward reduces them. Mirrors the first lines of
    `accelerate.optimizer.AcceleratedOptimizer.step`.

    Args:
        optimizers: hold the parameters; unwrapped.
        state: accelerate's, which records that gradients are reduced.
    """
    if state.is_xla_gradients_synced:
        return
    import torch_xla.core.xla_model as xm
    import torch_xla.runtime as xr

    gradients = [
        parameter.grad
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    xm.all_reduce(xm.REDUCE_SUM, gradients, scale=1.0 / xr.world_size())
    state.is_xla_gradients_synced = True


class ReducingOptimizer(SyncedOptimizer):
    """An optimizer on XLA devices, which averages gradients over the processes before its step."""

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if not self._gradient_state.sync_gradients:
            return None
        with reduced(self):
            return super().step(closure)


@contextlib.contextmanager
def reduced(optimizer: Optimizer) -> Iterator[None]:
    """Average the gradients of a `ReducingOptimizer` before the block, in which it steps.

    Args:
        optimizer: of any kind; the gradients of others are left alone.
    """
    if not isinstance(optimizer, ReducingOptimizer):
        yield
        return
    state = optimizer._gradient_state
    reduce_gradients([optimizer.optimizer], state)
    try:
        yield
    finally:
        state.is_xla_gradients_synced = False
