"""Lightning's LearningRateFinder and BatchSizeFinder, run before training."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BatchSizeFinder
from transformers import TrainerState
from transformers.utils import logging
from typing_extensions import override

from compat.callbacks.finders import FINDERS
from compat.checkpoint.layout import STATE
from compat.engine.any_device import trainer_flags
from compat.engine.build import quiet
from compat.engine.loader_state import Generators
from compat.engine.loops import own_warnings
from compat.engine.position import draws, redraw
from compat.engine.user_module import is_user_module
from compat.trainer.datamodule_dataset import DataModuleDataset
from compat.upstream.devices import kept_random_states
from compat.upstream.instrumented import unheard_fit

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader

    from compat.engine.host import TrainerHost
    from compat.upstream.values import Batch

logger = logging.get_logger("transformers.trainer")


class Probe(pl.LightningModule):
    """A LightningModule with HF's loss, optimizer and data, for a search by Lightning.

    Args:
        hf: the HF Trainer whose arguments are searched for.
    """

    def __init__(self, hf: TrainerHost) -> None:
        super().__init__()
        self.model = hf.model
        self._hf = weakref.ref(hf)

    @property
    def hf(self) -> TrainerHost:
        """The HF Trainer."""
        return cast("TrainerHost", self._hf())

    @property
    def learning_rate(self) -> float:
        """`learning_rate` of the arguments."""
        return float(self.hf.args.learning_rate)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.hf.args.learning_rate = value

    @property
    def batch_size(self) -> int:
        """`per_device_train_batch_size` of the arguments, in samples."""
        return int(self.hf.args.per_device_train_batch_size)

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.hf.args.per_device_train_batch_size = value
        self.hf._train_batch_size = self.hf.args.train_batch_size

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self.hf.get_train_dataloader()

    @override
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.model.train()
        with self.hf.compute_loss_context_manager():
            loss: torch.Tensor = self.hf.compute_loss(self.model, self.hf._prepare_inputs(batch))
        return loss.mean()

    @override
    def configure_optimizers(self) -> Optimizer:
        hf, optimizer = self.hf, self.hf.optimizer
        hf.optimizer = None
        try:
            return hf.create_optimizer()
        finally:
            hf.optimizer = optimizer


def find(hf: TrainerHost, finders: Iterable[Any], checkpoint: str | None) -> None:
    """Run finders; each sets its argument, and restores weights and random states.

    A resumed run has found its values before: the learning rate is in the optimizer's state, the batch size
    is read from the checkpoint.

    Args:
        hf: the HF Trainer.
        finders: Lightning's callbacks.
        checkpoint: the checkpoint that the run resumes from.
    """
    for finder in finders:
        kind = next(kind for kind in FINDERS if isinstance(finder, kind))
        probe = Probe(hf)
        if checkpoint is not None:
            if kind is BatchSizeFinder:
                state = TrainerState.load_from_json(os.path.join(checkpoint, STATE))
                probe.batch_size = state.train_batch_size
            continue
        order = draws(Generators())
        finder._early_exit = True
        with own_warnings(), kept_random_states():
            _search(hf, finder, probe)
        if not is_user_module(hf.model):
            argument = FINDERS[kind]
            logger.warning(f"{kind.__name__} sets `{argument}={getattr(hf.args, argument)!r}`")
        redraw(order, Generators())
        hf.model.zero_grad()


def _search(hf: TrainerHost, finder: Any, probe: Probe) -> None:
    device = hf.args.device
    with quiet():
        searcher = pl.Trainer(
            **trainer_flags(device, {"accelerator": "cpu" if device.type == "cpu" else "auto", "devices": 1}),
            max_steps=1,
            callbacks=[finder],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=hf.args.output_dir,
        )
    if not is_user_module(hf.model):
        unheard_fit(searcher, probe)
        return
    # The search sets the attributes of this module.
    data = hf.train_dataset
    if not isinstance(data, DataModuleDataset):
        unheard_fit(searcher, hf.model, train_dataloaders=hf.get_train_dataloader())
        return
    unheard_fit(searcher, hf.model, datamodule=None if data.source is hf.model else data.source)
    data.forget()
