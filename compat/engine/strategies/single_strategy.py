"""One process on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import SingleDeviceStrategy as _SingleDeviceStrategy

from compat.engine.any_device import accelerator_of
from compat.engine.strategies.base import WhereHFHasIt

if TYPE_CHECKING:
    import torch

    from compat.upstream.environment import Facts


class SingleDeviceStrategy(WhereHFHasIt, _SingleDeviceStrategy):
    """One process on one device."""

    needs_closures = False


def single_device(device: torch.device, facts: Facts, **parts: Any) -> SingleDeviceStrategy:
    """Build the strategy."""
    return SingleDeviceStrategy(device=device, accelerator=accelerator_of(device.type), **parts)
