"""Lightning's strategies, leaving the model where HF's Trainer would leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.engine.strategies.ddp_strategy import ddp
from compat.engine.strategies.deepspeed_strategy import deepspeed
from compat.engine.strategies.fsdp_strategy import fsdp
from compat.engine.strategies.model_parallel_strategy import model_parallel
from compat.engine.strategies.single_strategy import single_device
from compat.engine.strategies.xla_strategy import single_xla, xla

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch.strategies import Strategy

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "single_device": single_device,
    "ddp": ddp,
    "fsdp": fsdp,
    "model_parallel": model_parallel,
    "deepspeed": deepspeed,
    "xla": xla,
    "single_xla": single_xla,
}
"""A plan's name of a strategy → what builds it."""
