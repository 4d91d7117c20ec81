"""One process per device, each with a shard of each parameter, as torch's DTensor."""

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
    """One process per device, each with a shard of each parameter: FSDP 2 and tensor parallelism.

    The model arrives sharded, or is sharded when HF prepares it together with its optimizer. The device mesh
    also comes from there.
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
