"""A process on each device, with a whole model in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import DDPStrategy as _DDPStrategy
from typing_extensions import override

from compat.engine.environment import HFEnvironment
from compat.engine.strategies.base import OfSeveralProcesses

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compat.upstream.environment import Facts


class DDPStrategy(OfSeveralProcesses, _DDPStrategy):
    """A process on each device, with the model in `DistributedDataParallel`.

    Lightning would wrap the LightningModule; HF's code, and that of its subclasses, knows the wrapped model.
    """

    needs_closures = False

    @override
    def wrap(self, model: nn.Module, **options: Any) -> nn.Module:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        self._ddp_kwargs = options
        return self._setup_model(model)


def ddp(device: torch.device, facts: Facts, **parts: Any) -> DDPStrategy:
    """Build the strategy; its options come with the model that is wrapped."""
    return DDPStrategy(cluster_environment=HFEnvironment(facts), **parts)
