"""A model of HF's style as a module for one's own Lightning Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from typing_extensions import override

from compat.trainer.facade import Trainer

if TYPE_CHECKING:
    import torch
    from torch import nn


class HFModule(pl.LightningModule):
    """Trains a model that returns its own loss, with HF's optimizer and scheduler.

    Names of its parameters and the order of its optimizer's groups are those of `Trainer`, so that a file
    which `trainer.lightning.save_checkpoint` has written loads here by `ckpt_path`.

    Args:
        model: returns a loss, as the `loss` of its output or as the first item, when called with labels.
        args: HF's arguments, of which those of optimizer and scheduler hold; all else is the Lightning
            Trainer's.
    """

    def __init__(self, model: nn.Module, args: Any) -> None:
        super().__init__()
        self.model = model
        self.args = args

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    @override
    def on_train_epoch_start(self) -> None:
        # `from_pretrained` returns models in eval mode, and Lightning keeps them so.
        self.model.train()

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss.detach())
        return loss

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("eval_loss", self._loss(batch))

    @override
    def configure_optimizers(self) -> Any:
        """HF's optimizer and scheduler over the steps that the Lightning Trainer will make."""
        hf = Trainer(self.model, self.args)
        hf.create_optimizer_and_scheduler(int(self.trainer.estimated_stepping_batches))
        optimizer = getattr(hf.optimizer, "optimizer", hf.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": hf.lr_scheduler, "interval": "step"}}

    def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
        output = self.model(**batch)
        loss: torch.Tensor = output["loss"] if isinstance(output, dict) else output[0]
        return loss
