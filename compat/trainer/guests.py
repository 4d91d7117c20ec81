"""A LightningModule as `model=`, a LightningDataModule as `train_dataset=`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import default_data_collator
from transformers.utils import logging

from compat.arguments.fields import shown
from compat.arguments.optimizers import optimizer_problems
from compat.engine.guest import TRANSFERS, GuestModule, check_guest, is_guest, loss_of
from compat.errors import ArgumentError
from compat.trainer.callbacks import CallbacksMixin
from compat.upstream.distributions import check_distribution

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compat.trainer.given import Given

logger = logging.get_logger("transformers.trainer")

DATASETS = ("train_dataset", "eval_dataset")

OF_OPTIMIZER = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "optim_args"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
)
"""Arguments of HF's optimizer, which a LightningModule with its own does not have."""

OF_DATA = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_drop_last"),
    *("dataloader_num_workers", "group_by_length", "train_sampling_strategy"),
)
"""Arguments of HF's loaders, which a LightningDataModule with its own does not have."""

OF_MODEL = {
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "gradient_checkpointing": False,
}
"""Arguments that reach into a model of HF's → what they are where nothing is asked for."""


class DataOfModule(Dataset[Any]):
    """Stands for a LightningDataModule where HF's Trainer has a dataset.

    Args:
        source: a LightningDataModule, or a LightningModule with dataloaders of its own.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self._stages: set[str] = set()

    def __len__(self) -> int:
        """One: HF's constructor asks whether there is a length, and loaders tell it once they are there."""
        return 1

    def loader(self, name: str, hf: Any) -> DataLoader[Any]:
        """One of its dataloaders.

        Args:
            name: the method that makes it.
            hf: the HF Trainer that asks.

        Raises:
            ArgumentError: it has none, or several.
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

    def _prepare(self, stage: str, hf: Any) -> None:
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
        """Undo each `setup`; the next loader calls it anew."""
        for stage in sorted(self._stages):
            self.source.teardown(stage)
        self.forget()

    def forget(self) -> None:
        """Lightning has undone it."""
        self._stages = set()


def collate(rows: list[Any]) -> Any:
    """A batch as a LightningModule expects it: HF's collator for rows by name, torch's for all else."""
    return default_data_collator(rows) if isinstance(rows[0], Mapping) else default_collate(rows)


def check_arguments(args: Any, model: Any) -> None:
    """Refuse arguments that would have to reach into a LightningModule.

    Raises:
        ArgumentError: the arguments that are given, and where to put what they ask for.
    """
    found = [
        shown(name, getattr(args, name))
        for name, idle in OF_MODEL.items()
        if getattr(args, name, idle) not in (idle, None)
    ]
    if found:
        msg = (
            f"`{'`, `'.join(found)}`: acts within models of Hugging Face's, and `{type(model).__name__}` is "
            "a LightningModule. Leave it out, and do it in the module."
        )
        raise ArgumentError(msg)


def _check_loss(function: Any, model: Any) -> None:
    if function is not None:
        name = getattr(function, "__name__", type(function).__name__)
        msg = (
            f"`compute_loss_func={name}`: `{type(model).__name__}` is a LightningModule, and its "
            "`training_step` returns the loss. Leave it out, and compute the loss there."
        )
        raise ArgumentError(msg)


def check_data(source: Any, argument: str) -> None:
    """Refuse a LightningDataModule that moves or changes batches, which HF's loaders do themselves.

    Raises:
        ArgumentError: the hooks that it overrides.
    """
    found = [hook for hook in TRANSFERS if is_overridden(hook, source)]
    if found:
        msg = (
            f"`{argument}={type(source).__name__}`: it overrides `{'`, `'.join(found)}`, and batches are "
            "moved by HF's loaders. Do it in the collate function or in the module's steps."
        )
        raise ArgumentError(msg)


def welcome(given: Given) -> None:
    """Have HF's constructor take a LightningModule and a LightningDataModule.

    Args:
        given: its arguments; changed.

    Raises:
        ArgumentError: the module cannot be trained by an HF Trainer, or belongs to another distribution.
    """
    from compat.trainer.module import HFModule  # which is built on this

    model = given["model"]
    check_distribution(model, "model")
    if isinstance(model, HFModule):
        given["model"] = model = model.model
    if is_guest(model):
        check_guest(model)
        model.configure_model()
        check_arguments(given["args"], model)
        _check_loss(given["compute_loss_func"], model)
        if given["data_collator"] is None:
            given["data_collator"] = collate
        if given["train_dataset"] is None and is_overridden("train_dataloader", model):
            given["train_dataset"] = DataOfModule(model)
    for name in DATASETS:
        check_distribution(given[name], name)
        if isinstance(given[name], pl.LightningDataModule):
            check_data(given[name], name)
            given[name] = DataOfModule(given[name])
        elif isinstance(given[name], dict):
            given[name] = {key: _as_data(value) for key, value in given[name].items()}
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
            return self.accelerator.prepare(self.train_dataset.loader("train_dataloader", self))
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The evaluation data. Mirrors `transformers.Trainer.get_eval_dataloader`."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = _as_data(self.eval_dataset[dataset] if isinstance(dataset, str) else dataset)
        if isinstance(dataset, DataOfModule):
            return self.accelerator.prepare(dataset.loader("val_dataloader", self))
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The data to predict. Mirrors `transformers.Trainer.get_test_dataloader`."""
        dataset = _as_data(test_dataset)
        if isinstance(dataset, DataOfModule):
            predicts = is_overridden("predict_dataloader", dataset.source)
            return self.accelerator.prepare(
                dataset.loader("predict_dataloader" if predicts else "test_dataloader", self)
            )
        return super().get_test_dataloader(test_dataset)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        # What a LightningModule's steps use, its `forward` does not tell.
        return dataset if is_guest(self.model) else super()._remove_unused_columns(dataset, description)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        if is_guest(self.model):
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    # Batches, which may be anything that Lightning moves: a tensor, a dataclass, an object with a `to`.

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Any]:
        """The batches of a window, and what they count. Mirrors `transformers.Trainer.get_batch_samples`."""
        if not is_guest(self.model):
            read: tuple[list[Any], Any] = super().get_batch_samples(
                epoch_iterator, num_batches, *args, **kwargs
            )
            return read
        # The loss of a LightningModule is the mean of its batch: nothing is to be counted.
        return list(islice(epoch_iterator, num_batches)), None

    def floating_point_ops(self, inputs: Any) -> int:
        """What a batch costs. Mirrors `transformers.Trainer.floating_point_ops`."""
        is_told = not is_guest(self.model) or hasattr(self.model, "floating_point_ops")
        return super().floating_point_ops(inputs) if is_told or isinstance(inputs, Mapping) else 0

    def _count_tokens_before_step(self, inputs: Any) -> None:
        super()._count_tokens_before_step(self._by_name(inputs))

    def _count_tokens_after_step(self, inputs: Any) -> None:
        super()._count_tokens_after_step(self._by_name(inputs))

    def _by_name(self, inputs: Any) -> Any:
        """A batch for code that looks for tokens by their name; without any where it has no names."""
        return {} if is_guest(self.model) and not isinstance(inputs, Mapping) else inputs

    def _prepare_inputs(self, inputs: Any) -> Any:
        if not is_guest(self.model):
            return super()._prepare_inputs(inputs)
        # Each tensor as HF would have it, then what only Lightning knows to move.
        return move_data_to_device(
            apply_to_collection(inputs, torch.Tensor, self._prepare_input), self.args.device
        )

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
        loss, logits, labels = (
            loss_of(output, self.model, "validation_step"),
            named.get("logits"),
            named.get("labels"),
        )
        if labels is None and logits is not None and isinstance(inputs, Mapping):
            names = (*self.label_names, "labels")
            labels = next((inputs[name] for name in names if name in inputs), None)
        if self.compute_metrics is not None and not prediction_loss_only and logits is None:
            msg = (
                f"`compute_metrics`: `{type(self.model).__name__}.validation_step` returns nothing to "
                "compute with. Return a dict with `loss`, `logits` and `labels`, or log the metrics there."
            )
            raise ArgumentError(msg)
        return loss, logits, labels

    # Optimizer and scheduler.

    _guest_config: Any = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """HF's optimizer, or that of a LightningModule. Mirrors `transformers.Trainer.create_optimizer`."""
        configures = is_guest(self.model) and is_overridden("configure_optimizers", self.model)
        if self.optimizer is None and not configures:
            device = next((parameter.device for parameter in self.model.parameters()), self.args.device)
            if problems := optimizer_problems(self.args, device):
                raise ArgumentError("\n".join(problems))
        if self.optimizer is not None or not configures:
            return super().create_optimizer(*args, **kwargs)
        self.optimizer, self._guest_config = self._guest_module.optimizer_and_config()
        self._tell_of_unused()
        return self.optimizer

    def _tell_of_unused(self) -> None:
        """Say which arguments the user's own optimizer and data leave without effect."""
        of_data = isinstance(self.train_dataset, DataOfModule)
        unused = {*OF_OPTIMIZER, *(OF_DATA if of_data else ())}
        found = [shown(one.field, one.value) for one in self.plan.changed() if one.field in unused]
        if found and self.is_world_process_zero():
            logger.warning(
                f"`{'`, `'.join(found)}`: without effect, for `{type(self.model).__name__}` brings its "
                "own optimizer or data. Set it there."
            )

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
