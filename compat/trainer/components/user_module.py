"""A LightningModule as `model=`, a LightningDataModule as `train_dataset=`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from transformers.utils import logging

from compat.arguments.fields import shown
from compat.arguments.optimizers import optimizer_problems
from compat.engine.manual_optimization import is_manual, reported_loss
from compat.engine.user_module import UserModuleAdapter, is_user_module, loss_of
from compat.errors import ArgumentError
from compat.trainer.component import Component
from compat.trainer.datamodule_dataset import DataModuleDataset, as_dataset
from compat.translate import strategy_of
from compat.upstream.environment import Facts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lightning.pytorch.utilities.types import LRSchedulerConfig
    from torch import nn
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader
    from transformers import TrainingArguments

    from compat.engine.host import TrainerHost
    from compat.upstream.values import Batch, Output, Rows

logger = logging.get_logger("transformers.trainer")

OF_OPTIMIZER = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "optim_args"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
)
"""Arguments of HF's optimizer, which do not apply to a LightningModule with its own optimizer."""

OF_STEPS = ("gradient_accumulation_steps", "max_grad_norm")
"""Arguments of HF's update steps, which do not apply to a module that optimizes manually."""

MANUAL_STRATEGIES = ("single_device", "ddp")
"""Strategies under which a module may optimize manually."""

NOT_MANUAL = ("fp16", "fsdp", "deepspeed", "parallelism_config")
"""Arguments that scale gradients or shard a model, which a module that optimizes manually cannot follow."""

OF_DATA = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_drop_last"),
    *("dataloader_num_workers", "group_by_length", "train_sampling_strategy"),
)
"""Arguments of HF's loaders, which do not apply to a LightningDataModule with its own loaders."""


class UserModule(Component):
    """Calls a user's LightningModule and LightningDataModule in place of HF's code.

    Attributes:
        config: the scheduler that Lightning steps for the module; None if HF or the module itself does.
        configured: what `configure_optimizers` of a module that optimizes manually returned.
    """

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self.config: LRSchedulerConfig | None = None
        self.configured: Any = None
        self._scheduler: Any = None

    # Data.

    def train_dataloader(self) -> DataLoader[Any] | None:
        """Return a LightningDataModule's train loader; None if the data is no LightningDataModule."""
        return self._loader(self.hf.train_dataset, "train_dataloader")

    def eval_dataloader(self, eval_dataset: Rows) -> DataLoader[Any] | None:
        """Return a LightningDataModule's evaluation loader; None if the data is no LightningDataModule.

        Args:
            eval_dataset: the argument of `get_eval_dataloader`.
        """
        return self._loader(as_dataset(self.eval_data(eval_dataset)), "val_dataloader")

    def eval_data(self, eval_dataset: Rows) -> Rows:
        """Return the data itself: the trainer's own if None is given, one of several by its name.

        Args:
            eval_dataset: the argument of `get_eval_dataloader`.
        """
        own = self.hf.eval_dataset
        data = own if eval_dataset is None else eval_dataset
        is_name = isinstance(data, str) and isinstance(own, Mapping)
        return own.get(data, data) if is_name else data

    def test_dataloader(self, test_dataset: Rows) -> DataLoader[Any] | None:
        """Return a LightningDataModule's prediction loader; None if the data is no LightningDataModule.

        Args:
            test_dataset: the argument of `get_test_dataloader`.
        """
        dataset = as_dataset(test_dataset)
        predicts = isinstance(dataset, DataModuleDataset) and is_overridden(
            "predict_dataloader", dataset.source
        )
        return self._loader(dataset, "predict_dataloader" if predicts else "test_dataloader")

    def _loader(self, dataset: Rows, name: str) -> DataLoader[Any] | None:
        if not isinstance(dataset, DataModuleDataset):
            return None
        loader: DataLoader[Any] = self.hf.accelerator.prepare(dataset.loader(name, self.hf))
        return loader

    # Batches can be anything that Lightning moves: a tensor, a dataclass, an object with a `to`.

    def batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, *_: object, **__: object
    ) -> tuple[list[Any], None]:
        """Fetch the batches of a window; each loss is the mean of its batch, so items are not counted.

        Args:
            epoch_iterator: yields batches.
            num_batches: the size of the window.
        """
        return list(islice(epoch_iterator, num_batches)), None

    def is_without_flops(self, inputs: Batch) -> bool:
        """Whether the floating-point operations of a batch are unknown.

        Args:
            inputs: the batch.
        """
        return not (hasattr(self.hf.model, "floating_point_ops") or isinstance(inputs, Mapping))

    def prepare_inputs(self, inputs: Batch) -> Batch:
        """Move each tensor as HF does, then the objects that only Lightning can move.

        Args:
            inputs: the batch.
        """
        hf = self.hf
        return move_data_to_device(
            apply_to_collection(inputs, torch.Tensor, hf._prepare_input), hf.args.device
        )

    # Steps.

    @property
    def _module(self) -> UserModuleAdapter:
        built = self.hf._fit.built
        module = None if built is None else built.lightning_module
        assert isinstance(module, UserModuleAdapter), "in one of Lightning's loops"
        return module

    def compute_loss(self, model: nn.Module, inputs: Batch, *, return_outputs: bool) -> Output:
        """Return the loss of the module's `training_step`.

        Args:
            model: the model as a training step calls it.
            inputs: a batch.
            return_outputs: whether the step's output is returned as well.

        Returns:
            A scalar, or the scalar and the output.
        """
        output = self._module.step("training_step", model, inputs)
        if not is_manual(self.hf.model):
            loss = loss_of(output, self.hf.model, "training_step")
        elif (loss := reported_loss(output)) is None:
            loss = torch.zeros((), device=self.hf.args.device)
        return (loss, output) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool
    ) -> tuple[Any, Any, Any]:
        """Call the module's `validation_step`, or its `predict_step` for predictions.

        Args:
            model: the model, in eval mode.
            inputs: a batch.
            prediction_loss_only: whether only the loss is returned.

        Returns:
            Loss, logits and labels; each may be None.

        Raises:
            ArgumentError: the module lacks that step, or the step returns nothing to compute metrics from.
        """
        hf, module = self.hf, self._module
        inputs = hf._prepare_inputs(inputs)
        if module.evaluation is not None and module.evaluation.predicts:
            return None, module.step("predict_step", model, inputs), None
        if not is_overridden("validation_step", hf.model):
            msg = (
                f"`model={type(hf.model).__name__}`: it has no `validation_step` to evaluate with. Add "
                "one, or leave `eval_strategy` and `evaluate` out."
            )
            raise ArgumentError(msg)
        output = module.step("validation_step", model, inputs)
        named = output if isinstance(output, Mapping) and not prediction_loss_only else {}
        loss = loss_of(output, hf.model, "validation_step")
        logits, labels = named.get("logits"), named.get("labels")
        if labels is None and logits is not None and isinstance(inputs, Mapping):
            names = (*hf.label_names, "labels")
            labels = next((inputs[name] for name in names if name in inputs), None)
        if hf.compute_metrics is not None and not prediction_loss_only and logits is None:
            msg = (
                f"`compute_metrics`: `{type(hf.model).__name__}.validation_step` returns nothing to "
                "compute with. Return a dict with `loss`, `logits` and `labels`, or log the metrics there."
            )
            raise ArgumentError(msg)
        return loss, logits, labels

    # Optimizer and scheduler.

    def check_manual(self) -> None:
        """Refuse arguments under which the model cannot optimize manually, also one from `model_init`.

        Raises:
            ArgumentError: names the arguments.
        """
        check_manual(self.hf.args, self.hf.model)

    @property
    def is_own(self) -> bool:
        """Whether the optimizers are those that the module configures."""
        return self.config is not None or is_manual(self.hf.model)

    def create_optimizer(self) -> Optimizer | None:
        """Have the module configure its optimizer and scheduler; return None if HF's code creates them.

        Raises:
            ArgumentError: HF's code cannot create the optimizer that the arguments name.
        """
        hf = self.hf
        if hf.optimizer is not None:
            return None
        if not (is_user_module(hf.model) and is_overridden("configure_optimizers", hf.model)):
            device = next((parameter.device for parameter in hf.model.parameters()), hf.args.device)
            if problems := optimizer_problems(hf.args, device):
                raise ArgumentError("\n".join(problems))
            return None
        hf.optimizer, self._scheduler, self.config = self._module.optimizer_and_scheduler()
        if not is_manual(hf.model):
            self._warn_of_unused_arguments(OF_OPTIMIZER, "brings its own optimizer or data")
        optimizer: Optimizer = hf.optimizer
        return optimizer

    def _warn_of_unused_arguments(self, unused: Collection[str], why: str) -> None:
        hf = self.hf
        if isinstance(hf.train_dataset, DataModuleDataset):
            unused = {*unused, *OF_DATA}
        found = [shown(one.field, one.value) for one in hf.plan.changed() if one.field in unused]
        if found and hf.is_world_process_zero():
            logger.warning(
                f"`{'`, `'.join(found)}`: without effect, for `{type(hf.model).__name__}` {why}. "
                "Set it there."
            )

    @contextlib.contextmanager
    def stepping_by_batch(self) -> Iterator[None]:
        """Take each batch as one update step, if the module optimizes manually."""
        hf = self.hf
        if not is_manual(hf.model):
            yield
            return
        brings_data = isinstance(hf.train_dataset, DataModuleDataset)
        why = "optimizes manually, with data of its own" if brings_data else "optimizes manually"
        self._warn_of_unused_arguments((*OF_OPTIMIZER, *OF_STEPS), why)
        given, hf.args.gradient_accumulation_steps = hf.args.gradient_accumulation_steps, 1
        try:
            yield
        finally:
            hf.args.gradient_accumulation_steps = given

    def omit_losses(self, logs: dict[str, float]) -> None:
        """Remove losses from HF's logs where a module that optimizes manually has returned none.

        Args:
            logs: name → value; modified in place.
        """
        session = self.hf._fit.session
        if session is None or not is_manual(self.hf.model):
            return
        # A script may log a `loss` of its own; HF logs it with the learning rate.
        if not session.losses_since_log and "learning_rate" in logs:
            logs.pop("loss", None)
        if not session.has_losses:
            logs.pop("train_loss", None)

    def create_scheduler(self) -> Any:
        """Return the scheduler that the module has configured; None if HF's code creates one."""
        hf = self.hf
        if hf.lr_scheduler is not None or self._scheduler is None:
            return None
        hf.lr_scheduler, hf._created_lr_scheduler = self._scheduler, True
        return hf.lr_scheduler


def check_manual(args: TrainingArguments | None, model: nn.Module) -> None:
    """Refuse arguments under which a module cannot optimize manually.

    Args:
        args: HF's arguments; None for the default ones.
        model: any model.

    Raises:
        ArgumentError: names the arguments.
    """
    if args is None or not is_manual(model):
        return
    found = [shown(name, value) for name in NOT_MANUAL if (value := getattr(args, name, None))]
    if not found and (strategy := strategy_of(args, Facts.of(args), model)) not in MANUAL_STRATEGIES:
        found = [shown("strategy", strategy)]
    if found:
        msg = (
            f"`{'`, `'.join(found)}`: `{type(model).__name__}` optimizes manually, which works on one device "
            "or with DDP, in fp32 or bf16. Leave it out, or train the module with `lightning.Trainer` itself."
        )
        raise ArgumentError(msg)
