"""Base classes of the strategies: model and optimizer stay where HF's Trainer puts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from compat.upstream.environment import concealed

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch import nn

    from compat.engine.module import TrainerModule


class WhereHFHasIt(Strategy):
    """A strategy that leaves model and optimizer where HF's Trainer puts them."""

    needs_closures: ClassVar[bool] = True
    """Whether it takes part in backward and step, so that Lightning's closure must be used."""

    @override
    def model_to_device(self) -> None:
        module = cast("TrainerModule", self.lightning_module)
        # HF has reasons not to move a model: it is on several devices, or is to be cast first.
        if module.hf.place_model_on_device:
            super().model_to_device()  # type: ignore[safe-super]

    @override
    def teardown(self) -> None:
        """Release the run's objects; the model and the optimizer stay on their device, as under HF."""
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


class OfOneProcess(WhereHFHasIt):
    """A strategy of one process on one device."""

    @override
    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the value of this process, and a count on the CPU.

        Lightning reduces the lengths of loaders and compares the results with 0, several times before a pass.
        On the device each comparison would wait for it, and on XLA be a program to compile.
        """
        is_count = isinstance(tensor, torch.Tensor) and not tensor.is_floating_point()
        return tensor.cpu() if is_count else tensor


class OfSeveralProcesses(WhereHFHasIt):
    """A strategy of several processes: HF wraps or shards the model when it prepares it."""

    @override
    def setup_environment(self) -> None:
        # Lightning would reseed from the variable that `seed_everything` sets; seeds are HF's.
        with concealed(("PL_GLOBAL_SEED",)):
            super().setup_environment()

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        # As under HF, only the wrapper broadcasts weights, and only in training.
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if trainer.state.fn == TrainerFn.FITTING:
            _optimizers_to_device(self.optimizers, self.root_device)
