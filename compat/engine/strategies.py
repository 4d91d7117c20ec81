"""Lightning's strategies, leaving the model where HF's Trainer would leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch.strategies import SingleDeviceStrategy as _SingleDeviceStrategy
from typing_extensions import override

if TYPE_CHECKING:
    from compat.engine.module import TrainerModule


class SingleDeviceStrategy(_SingleDeviceStrategy):
    """One process on one device."""

    @override
    def model_to_device(self) -> None:
        module = cast("TrainerModule", self.lightning_module)
        # HF has its reasons not to move a model: it lies on several devices, or is to be cast first.
        if module.hf.place_model_on_device:
            super().model_to_device()

    @override
    def teardown(self) -> None:
        """Release what belongs to the run; the model and the optimizer stay on their device, as under HF."""
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


STRATEGIES: dict[str, Any] = {"single_device": SingleDeviceStrategy}
"""A plan's name of a strategy → the class that is built."""
