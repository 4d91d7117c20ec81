"""A LightningModule as `model=`, a LightningDataModule as `train_dataset=`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import default_data_collator

from compat.engine.guest import GuestModule, check_guest, is_guest, loss_of
from compat.errors import ArgumentError
from compat.trainer.callbacks import CallbacksMixin
from compat.upstream.distributions import check_distribution, role_in_other

if TYPE_CHECKING:
    from compat.trainer.given import Given

DATASETS = ("train_dataset", "eval_dataset")


class DataOfModule(Dataset[Any]):
    """Stands for a LightningDataModule where HF's Trainer has a dataset; prepared when first asked.

    Args:
        source: a LightningDataModule, or a LightningModule with dataloaders of its own.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self._stages: set[str] = set()

    def __len__(self) -> int:
        """Samples of the train data.

        Raises:
            TypeError: they have no length.
        """
        samples: Any = self.loader("train_dataloader").dataset
        return len(samples)

    def __getitem__(self, index: int) -> Any:
        """A sample of the train data."""
        return self.loader("train_dataloader").dataset[index]

    def loader(self, name: str) -> DataLoader[Any]:
        """One of its dataloaders.

        Args:
            name: the method that makes it.

        Raises:
            ArgumentError: it has none, or several.
        """
        stage = {"predict_dataloader": "predict", "test_dataloader": "test"}.get(name, "fit")
        if stage not in self._stages and isinstance(self.source, pl.LightningDataModule):
            if not self._stages:
                self.source.prepare_data()
            self._stages.add(stage)
            self.source.setup(stage)
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


def collate(rows: list[Any]) -> Any:
    """A batch as a LightningModule expects it: HF's collator for rows by name, torch's for all else."""
    return default_data_collator(rows) if isinstance(rows[0], Mapping) else default_collate(rows)


def welcome(given: Given) -> None:
    """Have HF's constructor take a LightningModule and a LightningDataModule.

    Args:
        given: its arguments; changed.

    Raises:
        ArgumentError: the module cannot be trained by an HF Trainer, or belongs to another distribution.
    """
    from compat.trainer.module import HFModule  # which is built on this

    model = given["model"]
    role = role_in_other(model)
    if role is not None:
        check_distribution(model, "model")
    if isinstance(model, HFModule):
        given["model"] = model = model.model
    if is_guest(model):
        check_guest(model)
        model.configure_model()
        if given["data_collator"] is None:
            given["data_collator"] = collate
        if given["train_dataset"] is None and is_overridden("train_dataloader", model):
            given["train_dataset"] = DataOfModule(model)
    for name in DATASETS:
        check_distribution(given[name], name)
        if isinstance(given[name], pl.LightningDataModule):
            given[name] = DataOfModule(given[name])
    source = given["train_dataset"]
    validates = isinstance(source, DataOfModule) and is_overridden("val_dataloader", source.source)
    if validates and given["eval_dataset"] is None:
        given["eval_dataset"] = source


class GuestsMixin(CallbacksMixin):
    """HF's steps, taken by the user's LightningModule where the model is one."""

    model: Any
    args: Any
    optimizer: Any
    lr_scheduler: Any

    # Data.

    def get_train_dataloader(self) -> Any:
        """The train data. Mirrors `transformers.Trainer.get_train_dataloader`."""
        if isinstance(self.train_dataset, DataOfModule):
            return self.accelerator.prepare(self.train_dataset.loader("train_dataloader"))
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The evaluation data. Mirrors `transformers.Trainer.get_eval_dataloader`."""
        dataset = _as_data(self.eval_dataset if eval_dataset is None else eval_dataset)
        if isinstance(dataset, DataOfModule):
            return self.accelerator.prepare(dataset.loader("val_dataloader"))
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The data to predict. Mirrors `transformers.Trainer.get_test_dataloader`."""
        dataset = _as_data(test_dataset)
        if isinstance(dataset, DataOfModule):
            predicts = is_overridden("predict_dataloader", dataset.source)
            return self.accelerator.prepare(
                dataset.loader("predict_dataloader" if predicts else "test_dataloader")
            )
        return super().get_test_dataloader(test_dataset)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        # What a LightningModule's steps use, its `forward` does not tell.
        return dataset if is_guest(self.model) else super()._remove_unused_columns(dataset, description)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        if is_guest(self.model):
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    # Steps.

    @property
    def _guest_module(self) -> GuestModule:
        module = self._lightning.lightning_module
        assert isinstance(module, GuestModule), "in one of Lightning's loops"
        return module

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """HF's loss, or that of a LightningModule. Mirrors `transformers.Trainer.compute_loss`."""
        if not is_guest(self.model):
            return super().compute_loss(model, inputs, *args, **kwargs)
        output = self._guest_module.step("training_step", model, inputs)
        loss = loss_of(output, self.model, "training_step")
        return (loss, output) if kwargs.get("return_outputs") or (args and args[0]) else loss

    def prediction_step(
        self,
        model: Any,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """HF's step, or that of a LightningModule. Mirrors `transformers.Trainer.prediction_step`."""
        if not is_guest(self.model):
            outputs: tuple[torch.Tensor | None, Any, Any] = super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys, **kwargs
            )
            return outputs
        with torch.no_grad():
            return self._guest_prediction(model, inputs, prediction_loss_only)

    def _guest_prediction(
        self, model: Any, inputs: Any, prediction_loss_only: bool
    ) -> tuple[torch.Tensor | None, Any, Any]:
        inputs = self._prepare_inputs(inputs)
        module = self._guest_module
        predicts = module.evaluation is not None and module.evaluation.predicts
        if predicts:
            return None, module.step("predict_step", model, inputs), None
        if not is_overridden("validation_step", self.model):
            msg = (
                f"`model={type(self.model).__name__}`: it has no `validation_step` to evaluate with. Add "
                "one, or leave `eval_strategy` and `evaluate` out."
            )
            raise ArgumentError(msg)
        output = module.step("validation_step", model, inputs)
        named = output if isinstance(output, Mapping) and not prediction_loss_only else {}
        loss = loss_of(output, self.model, "validation_step")
        return loss, named.get("logits"), named.get("labels")

    # Optimizer and scheduler.

    _guest_config: Any = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """HF's optimizer, or that of a LightningModule. Mirrors `transformers.Trainer.create_optimizer`."""
        configures = is_guest(self.model) and is_overridden("configure_optimizers", self.model)
        if self.optimizer is not None or not configures:
            return super().create_optimizer(*args, **kwargs)
        self.optimizer, self._guest_config = self._guest_module.optimizer_and_config()
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """HF's scheduler, or that of a LightningModule. Mirrors `transformers.Trainer.create_scheduler`."""
        if self.lr_scheduler is not None or self._guest_config is None:
            return super().create_scheduler(*args, **kwargs)
        self.lr_scheduler, self._created_lr_scheduler = self._guest_config.scheduler, True
        return self.lr_scheduler

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        # Lightning steps the scheduler of a LightningModule, also one that waits for a metric.
        skips = skip_scheduler or self._guest_config is not None
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=skips)


def _as_data(dataset: Any) -> Any:
    return DataOfModule(dataset) if isinstance(dataset, pl.LightningDataModule) else dataset
