"""HF's dataloaders for a user's Lightning Trainer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from torch import nn
from typing_extensions import override

from compat.errors import ArgumentError
from compat.modules.headless import build_parts
from compat.modules.strategies import share_job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compat.trainer.trainer import Trainer
    from compat.upstream.values import Loader, Rows


class HFLoader:
    """An HF dataloader for Lightning: iterated by batch, in HF's order for each epoch.

    Args:
        loader: HF's loader.
        seed: called with the loader before each epoch.
        name: the name of the dataset, if there are several.
    """

    def __init__(
        self, loader: Loader, seed: Callable[[Any], None] | None = None, name: str | None = None
    ) -> None:
        self.loader: Loader = loader
        self._seed = seed
        self.name = name

    @property
    def dataset(self) -> Rows:
        """The dataset."""
        return self.loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.seed(self.loader)
        with ended(self.loader):
            yield from self.loader

    def seed(self, loader: Loader) -> None:
        """Set the epoch of a loader: this one's, or the rest of it."""
        if self._seed is not None:
            self._seed(loader)


@contextlib.contextmanager
def ended(loader: Loader) -> Iterator[None]:
    """Deregister an accelerate loader, which stays registered as active until it is exhausted."""
    try:
        yield
    finally:
        state = getattr(loader, "gradient_state", None)
        if state is not None and any(loader is used for used in state.dataloader_references):
            loader.end()


class HFDataModule(pl.LightningDataModule):
    """The dataloaders of `transformers.Trainer`, for any Lightning Trainer and any LightningModule.

    Batch sizes, samplers and their seeds, workers, collation, column removal and the share of each process
    are HF's: Lightning does not insert its own sampler.

    Args:
        args: HF's arguments.
        train_dataset: as in `transformers.Trainer`.
        eval_dataset: as in `transformers.Trainer`: a dataset, or several by name.
        test_dataset: for `trainer.test`, and for `trainer.predict` where `predict_dataset` is None.
        predict_dataset: for `trainer.predict`.
        data_collator: as in `transformers.Trainer`.
        processing_class: used for padding if no collator is passed.
        model: the model whose `forward` decides which columns are kept; the model of the HFModule if None.
            With any other LightningModule, all columns are kept.
        trainer_class: a subclass of `compat.Trainer` whose `get_train_dataloader` and similar methods are
            used.
    """

    def __init__(
        self,
        args: Any,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        *,
        data_collator: Any = None,
        processing_class: Any = None,
        model: nn.Module | None = None,
        trainer_class: type[Trainer] | None = None,
    ) -> None:
        super().__init__()
        self.args = args
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.test_dataset = test_dataset
        self.predict_dataset = predict_dataset
        self.data_collator = data_collator
        self.processing_class = processing_class
        self._model = model
        self._kind = trainer_class

    @override
    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            share_job(self.args, self.trainer)

    @property
    def batch_size(self) -> int:
        """`args.per_device_train_batch_size`, for Lightning's `BatchSizeFinder`."""
        size: int = self.args.per_device_train_batch_size
        return size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.args.per_device_train_batch_size = size

    def _hf(self) -> Any:
        """The HF Trainer that creates the loaders, with the current arguments."""
        module = getattr(self.trainer, "lightning_module", None)
        known = self._model
        if known is None and getattr(module, "reads_windows", False):
            known = module.model  # type: ignore[union-attr]
        hf = build_parts(
            nn.Identity() if known is None else known,
            self.args,
            self._kind,
            data_collator=self.data_collator,
            processing_class=self.processing_class,
        )
        if known is None:
            hf.args.remove_unused_columns = False
        hf.train_dataset, hf.eval_dataset = self.train_dataset, self.eval_dataset
        return hf

    def _require(self, name: str, use: str) -> Rows:
        dataset = getattr(self, name)
        if dataset is None:
            msg = f"`{name}=None`: there is nothing to {use}. Give `HFDataModule({name}=...)`."
            raise ArgumentError(msg)
        return dataset

    @override
    def train_dataloader(self) -> HFLoader:
        self._require("train_dataset", "train on")
        hf = self._hf()
        if getattr(self.trainer, "overfit_batches", 0):
            # The same batches in each epoch.
            hf._get_train_sampler = lambda *_: None
        return HFLoader(hf.get_train_dataloader(), lambda loader: hf._seed_epoch(loader, self._epoch))

    @property
    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    @property
    def val_dataloader(self) -> Callable[[], Any]:
        """A function that creates the loaders; without a dataset, one that Lightning treats as absent."""
        if self.eval_dataset is not None:
            return self._val_dataloaders

        # Lightning's `BatchSizeFinder` calls it nevertheless.
        @functools.wraps(super().val_dataloader)
        def none() -> list[Any]:
            return []

        return none

    def _val_dataloaders(self) -> HFLoader | list[HFLoader]:
        hf = self._hf()
        if isinstance(self.eval_dataset, Mapping):
            return [HFLoader(hf.get_eval_dataloader(name), name=name) for name in self.eval_dataset]
        return HFLoader(hf.get_eval_dataloader())

    @override
    def test_dataloader(self) -> HFLoader:
        dataset = self._require("test_dataset", "test on")
        return HFLoader(self._hf().get_test_dataloader(dataset))

    @override
    def predict_dataloader(self) -> HFLoader:
        dataset = self.predict_dataset
        dataset = self._require("test_dataset", "predict") if dataset is None else dataset
        return HFLoader(self._hf().get_test_dataloader(dataset))
