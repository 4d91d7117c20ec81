"""A process on each device, with a part of each parameter, by torch's DTensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import ModelParallelStrategy as _ModelParallelStrategy

from compat.engine.environment import HFEnvironment
from compat.engine.strategies.base import OfSeveralProcesses

if TYPE_CHECKING:
    import torch

    from compat.upstream.environment import Facts


class ModelParallelStrategy(OfSeveralProcesses, _ModelParallelStrategy):
    """A process on each device, with a part of each parameter: FSDP of version 2, and tensor parallel.

    The model arrives sharded, or is when HF prepares it together with its optimizer.
    """


def model_parallel(device: torch.device, facts: Facts, **parts: Any) -> ModelParallelStrategy:
    """Build the strategy."""
    strategy = ModelParallelStrategy(data_parallel_size=facts.world_size, tensor_parallel_size=1)
    strategy.cluster_environment = HFEnvironment(facts)
    for name, part in parts.items():
        setattr(strategy, name, part)
    return strategy
