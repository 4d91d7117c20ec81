"""Base classes of the strategies: model and optimizer stay where HF's Trainer puts them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from compat.upstream.environment import concealed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    import torch
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

    @contextlib.contextmanager
    def with_equal_lengths(self) -> Iterator[None]:
        """Within the block, reduce no length of a loader: all processes have as many batches, at least one.

        Lightning reduces each several times before a pass, and looks at the results. Each look would wait for
        the other processes and for the device, and on XLA be a program to compile.
        """
        self.reduce = _some  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self.reduce

    def wrap(self, model: nn.Module, **options: Any) -> nn.Module:
        """Wrap a model to be trained, as HF's `model_wrapped`.

        Args:
            model: the model itself, not the LightningModule around it.
            options: of the wrapper.
        """
        return model


def _some(length: torch.Tensor, **options: object) -> int:
    """Stand in for a reduction of lengths that is only compared with 0."""
    return 1


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
