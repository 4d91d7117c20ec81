"""A process on each device, with a part of each parameter, by torch's DTensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import ModelParallelStrategy as _ModelParallelStrategy
from lightning.pytorch.strategies import ParallelStrategy
from typing_extensions import override

from compat.engine.environment import HFEnvironment
from compat.engine.strategies.base import OfSeveralProcesses

if TYPE_CHECKING:
    import torch

    from compat.upstream.environment import Facts


class ModelParallelStrategy(OfSeveralProcesses, _ModelParallelStrategy):
    """A process on each device, with a part of each parameter: FSDP of version 2, and tensor parallel.

    The model arrives sharded, or is when HF prepares it together with its optimizer; so does the mesh.
    """

    @override
    def setup_environment(self) -> None:
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        module: Any = self.lightning_module
        self._device_mesh = module._device_mesh = module.hf.accelerator.torch_device_mesh


def model_parallel(device: torch.device, facts: Facts, **parts: Any) -> ModelParallelStrategy:
    """Build the strategy."""
    strategy = ModelParallelStrategy()
    strategy.cluster_environment = HFEnvironment(facts)
    for name, part in parts.items():
        setattr(strategy, name, part)
    return strategy
