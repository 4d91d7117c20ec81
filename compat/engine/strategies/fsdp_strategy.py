"""One process per device, each with a shard of each parameter group: FSDP 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import FSDPStrategy as _FSDPStrategy
from typing_extensions import override

from compat.engine.environment import HFEnvironment
from compat.engine.strategies.base import OfSeveralProcesses

if TYPE_CHECKING:
    import torch

    from compat.upstream.environment import Facts


class FSDPStrategy(OfSeveralProcesses, _FSDPStrategy):
    """One process per device, with the model in `FullyShardedDataParallel`.

    accelerate wraps HF's model when HF prepares it, with the options of its own plugin. The precision is
    HF's, although Lightning's strategy would require its own.
    """

    @property  # type: ignore[override]
    @override
    def precision_plugin(self) -> Precision:
        return self._precision_plugin or Precision()

    @precision_plugin.setter
    @override
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        self._precision_plugin = precision_plugin


def fsdp(device: torch.device, facts: Facts, **parts: Any) -> FSDPStrategy:
    """Build the strategy; its options are passed when the model is wrapped."""
    return FSDPStrategy(cluster_environment=HFEnvironment(facts), **parts)
