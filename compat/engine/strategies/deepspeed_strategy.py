"""DeepSpeed's engine under Lightning, set up by HF's configuration, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import DeepSpeedStrategy as _DeepSpeedStrategy
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from typing_extensions import override

from compat.engine.environment import HFEnvironment
from compat.engine.strategies.base import OfSeveralProcesses

if TYPE_CHECKING:
    import lightning.pytorch as pl
    import torch

    from compat.engine.host import TrainerHost
    from compat.upstream.environment import Facts


class DeepSpeedStrategy(OfSeveralProcesses, _DeepSpeedStrategy):
    """One process per device, with DeepSpeed's engine around HF's model.

    HF completes the configuration, and accelerate creates the engine when HF prepares model and optimizer;
    the engine accumulates, clips and steps by itself. Lightning's checks for CUDA are skipped, because
    DeepSpeed also runs on a CPU.
    """

    @override
    def setup_environment(self) -> None:
        ParallelStrategy.setup_environment(self)
        self.setup_distributed()

    @override
    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        Strategy.setup_optimizers(self, trainer)
        if self._hf._user_module.config is not None:
            # The engine's optimizer wraps the one that this scheduler refers to, with the same groups.
            self.lr_scheduler_configs = [self._hf._user_module.config]

    @property
    @override
    def handles_gradient_accumulation(self) -> bool:
        """HF's windows end where DeepSpeed's do; no step event may fire inside a window."""
        return False

    @property
    @override
    def deepspeed_engine(self) -> Any:
        """The engine; None before HF has prepared the model."""
        return self._hf.deepspeed

    @property
    def _hf(self) -> TrainerHost:
        module: Any = self.lightning_module
        hf: TrainerHost = module.hf
        return hf

    @override
    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Have the engine run the backward, and the step at the end of a window."""
        assert self.lightning_module is not None
        loss: Any = self.precision_plugin.pre_backward(closure_loss, self.lightning_module)
        accelerator = self._hf.accelerator
        accelerator.deepspeed_engine_wrapped.backward(
            loss, sync_gradients=accelerator.sync_gradients, **kwargs
        )
        closed: torch.Tensor = self.precision_plugin.post_backward(loss, self.lightning_module)
        return closed


def deepspeed(device: torch.device, facts: Facts, **parts: Any) -> DeepSpeedStrategy:
    """Build the strategy; its own configuration is never read."""
    strategy = DeepSpeedStrategy(cluster_environment=HFEnvironment(facts), config={})
    for name, part in parts.items():
        setattr(strategy, name, part)
    return strategy
