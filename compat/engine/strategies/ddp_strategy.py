"""One process per device, each with a full copy of the model."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from lightning.pytorch.overrides.distributed import prepare_for_backward
from typing_extensions import override

from compat.engine.any_device import DDPStrategy as _DDPStrategy
from compat.engine.environment import HFEnvironment
from compat.engine.strategies.base import OfSeveralProcesses

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from compat.upstream.environment import Facts


class DDPStrategy(OfSeveralProcesses, _DDPStrategy):
    """One process per device, with the model in `DistributedDataParallel`.

    Lightning would wrap the LightningModule; HF's code and its subclasses expect the wrapped HF model.
    """

    needs_closures = False
    _wrapped: DistributedDataParallel | None = None

    @override
    def wrap(self, model: nn.Module, **options: Any) -> nn.Module:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        self._ddp_kwargs = options
        self._wrapped = self._setup_model(model)
        return self._wrapped

    # In manual optimization, gradients are reduced in each backward within the step, not after the forward.
    # Lightning looks for the wrapper around the LightningModule, where there is none.

    @override
    def pre_backward(self, closure_loss: torch.Tensor) -> None:
        module = self.lightning_module
        if self._wrapped is not None and module is not None and not module.automatic_optimization:
            prepare_for_backward(self._wrapped, closure_loss)

    @override
    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        with contextlib.nullcontext() if self._wrapped is None else self._wrapped.no_sync():
            yield


def ddp(device: torch.device, facts: Facts, **parts: Any) -> DDPStrategy:
    """Build the strategy; its options are passed when the model is wrapped."""
    return DDPStrategy(cluster_environment=HFEnvironment(facts), **parts)
