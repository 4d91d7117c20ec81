"""A LightningDataModule as the dataset of HF's Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset

from compat.errors import ArgumentError

if TYPE_CHECKING:
    from compat.engine.host import TrainerHost
    from compat.upstream.values import Rows


class DataModuleDataset(Dataset[Any]):
    """Wraps a LightningDataModule where HF's Trainer expects a dataset.

    Args:
        source: a LightningDataModule, or a LightningModule with dataloaders of its own.
    """

    def __init__(self, source: pl.LightningDataModule) -> None:
        self.source = source
        self._stages: set[str] = set()

    def __len__(self) -> int:
        """Return 1: HF's constructor checks that there is a length; the loaders know the real one."""
        return 1

    def loader(self, name: str, hf: TrainerHost) -> DataLoader[Any]:
        """Return one of its dataloaders.

        Args:
            name: the method that creates it.
            hf: the HF Trainer that uses it.

        Raises:
            ArgumentError: the method returns no dataloader, or several.
        """
        self._prepare({"predict_dataloader": "predict", "test_dataloader": "test"}.get(name, "fit"), hf)
        made = getattr(self.source, name)() if is_overridden(name, self.source) else None
        if isinstance(made, (list, tuple)) and len(made) == 1:
            made = made[0]
        if not isinstance(made, DataLoader):
            msg = (
                f"`{type(self.source).__name__}.{name}`: an HF Trainer takes one DataLoader, and it has "
                f"{'none' if made is None else type(made).__name__}. Return a DataLoader; several evaluation "
                "datasets are given as `eval_dataset={'name': dataset}`."
            )
            raise ArgumentError(msg)
        return made

    def _prepare(self, stage: str, hf: TrainerHost) -> None:
        if stage in self._stages:
            return
        self.source.trainer = hf.lightning
        if not self._stages:
            by_node = getattr(self.source, "prepare_data_per_node", True)
            if (hf.args.local_process_index if by_node else hf.args.process_index) == 0:
                self.source.prepare_data()
            hf.accelerator.wait_for_everyone()
        self._stages.add(stage)
        self.source.setup(stage)

    def is_set_up(self, stage: str) -> bool:
        """Whether its `setup` has been called for a stage."""
        return stage in self._stages

    def teardown(self) -> None:
        """Call `teardown` for each `setup`; the next loader calls `setup` again."""
        for stage in sorted(self._stages):
            self.source.teardown(stage)
        self.forget()

    def forget(self) -> None:
        """Record that Lightning has called `teardown`."""
        self._stages = set()


def as_dataset(dataset: Rows) -> Rows:
    """Wrap a LightningDataModule as a dataset; return anything else unchanged."""
    return DataModuleDataset(dataset) if isinstance(dataset, pl.LightningDataModule) else dataset
