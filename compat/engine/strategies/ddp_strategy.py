"""One process per device, each with a full copy of the model."""

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
    """One process per device, with the model in `DistributedDataParallel`.

    Lightning would wrap the LightningModule; HF's code and its subclasses expect the wrapped HF model.
    """

    needs_closures = False

    @override
    def wrap(self, model: nn.Module, **options: Any) -> nn.Module:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        self._ddp_kwargs = options
        return self._setup_model(model)


def ddp(device: torch.device, facts: Facts, **parts: Any) -> DDPStrategy:
    """Build the strategy; its options are passed when the model is wrapped."""
    return DDPStrategy(cluster_environment=HFEnvironment(facts), **parts)
