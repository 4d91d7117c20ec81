"""XLA devices, normally TPUs: one of them, or a process for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy as _SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy as _XLAStrategy
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from compat.engine.any_device import accelerator_of
from compat.engine.strategies.base import OfSeveralProcesses, WhereHFHasIt

if TYPE_CHECKING:
    import torch

    from compat.upstream.environment import Facts


class SingleDeviceXLAStrategy(WhereHFHasIt, _SingleDeviceXLAStrategy):
    """One process on one XLA device, or on several that torch_xla shards over by SPMD.

    Precision and checkpoints are HF's, although Lightning's strategy would require its own plugins.
    """

    needs_closures = False
    checkpoint_io = Strategy.checkpoint_io  # type: ignore[assignment]
    precision_plugin = Strategy.precision_plugin  # type: ignore[assignment]


class XLAStrategy(OfSeveralProcesses, _XLAStrategy):
    """One process per XLA device, each with a full copy of the model.

    HF's launcher has started the processes, and the optimizer averages their gradients. Precision and
    checkpoints are HF's. It has not been tried: a CPU has one XLA device per job.
    """

    needs_closures = False
    checkpoint_io = Strategy.checkpoint_io  # type: ignore[assignment]
    precision_plugin = Strategy.precision_plugin  # type: ignore[assignment]

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._launched = True

    @override
    def _configure_launcher(self) -> None:
        """Start no processes: this is one of them."""

    @override
    def setup_distributed(self) -> None:
        rank_zero_only.rank = self.global_rank  # type: ignore[attr-defined]

    @override
    def process_dataloader(self, dataloader: object) -> Any:
        """Return the loader: accelerate has wrapped it."""
        return dataloader


def single_xla(device: torch.device, facts: Facts, **parts: Any) -> SingleDeviceXLAStrategy:
    """Build the strategy."""
    return SingleDeviceXLAStrategy(device=device, accelerator=accelerator_of(device.type), **parts)


def xla(device: torch.device, facts: Facts, **parts: Any) -> XLAStrategy:
    """Build the strategy; torch_xla knows the ranks."""
    return XLAStrategy(**parts)
