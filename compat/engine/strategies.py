"""Lightning's strategies, leaving the model where HF's Trainer would leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import DDPStrategy as _DDPStrategy
from lightning.pytorch.strategies import ModelParallelStrategy as _ModelParallelStrategy
from lightning.pytorch.strategies import SingleDeviceStrategy as _SingleDeviceStrategy
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from compat.engine.environment import HFEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable

    import lightning.pytorch as pl
    import torch
    from torch import nn

    from compat.engine.module import TrainerModule
    from compat.upstream.environment import Facts


class _WhereHFHasIt(Strategy):
    """What all strategies share: model and optimizer are where HF's Trainer would have them."""

    @override
    def model_to_device(self) -> None:
        module = cast("TrainerModule", self.lightning_module)
        # HF has its reasons not to move a model: it lies on several devices, or is to be cast first.
        if module.hf.place_model_on_device:
            super().model_to_device()  # type: ignore[safe-super]

    @override
    def teardown(self) -> None:
        """Release what belongs to the run; the model and the optimizer stay on their device, as under HF."""
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    def wrap(self, model: nn.Module, **options: Any) -> nn.Module:
        """Wrap a model to be trained, as HF's `model_wrapped`.

        Args:
            model: the model itself, not the LightningModule around it.
            options: of the wrapper.
        """
        return model


class SingleDeviceStrategy(_WhereHFHasIt, _SingleDeviceStrategy):
    """One process on one device."""


class _OfSeveralProcesses(_WhereHFHasIt):
    """What the strategies of several processes share: HF wraps or shards the model when it prepares it."""

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        # No broadcast of weights outside of training, and in it the wrapper's: as under HF.
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if trainer.state.fn == TrainerFn.FITTING:
            _optimizers_to_device(self.optimizers, self.root_device)


class DDPStrategy(_OfSeveralProcesses, _DDPStrategy):
    """A process on each device, with the model in `DistributedDataParallel`.

    Lightning would wrap the LightningModule; HF's code, and that of its subclasses, knows the wrapped model.
    """

    @override
    def wrap(self, model: nn.Module, **options: Any) -> nn.Module:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        self._ddp_kwargs = options
        return self._setup_model(model)


class ModelParallelStrategy(_OfSeveralProcesses, _ModelParallelStrategy):
    """A process on each device, with a part of each parameter: FSDP of version 2, and tensor parallel.

    The model arrives sharded, or is when HF prepares it together with its optimizer.
    """


def _single_device(device: torch.device, facts: Facts, **parts: Any) -> Strategy:
    # A device without an accelerator of Lightning's own name is given with it.
    accelerator = AcceleratorRegistry.get(device.type)
    return SingleDeviceStrategy(device=device, accelerator=accelerator, **parts)


def _ddp(device: torch.device, facts: Facts, **parts: Any) -> Strategy:
    return DDPStrategy(cluster_environment=HFEnvironment(facts), **parts)


def _model_parallel(device: torch.device, facts: Facts, **parts: Any) -> Strategy:
    strategy = ModelParallelStrategy(data_parallel_size=facts.world_size, tensor_parallel_size=1)
    strategy.cluster_environment = HFEnvironment(facts)
    strategy.checkpoint_io = parts["checkpoint_io"]
    strategy.precision_plugin = parts["precision_plugin"]
    return strategy


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "single_device": _single_device,
    "ddp": _ddp,
    "model_parallel": _model_parallel,
}
"""A plan's name of a strategy → what builds it."""
