"""Converts the constructor's arguments to those of HF's constructor."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from accelerate.utils.deepspeed import DummyOptim, DummyScheduler
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import default_collate
from transformers import default_data_collator
from transformers.utils import logging

from compat.arguments.fields import shown
from compat.callbacks.misplaced import check_place, is_lightning_callback
from compat.engine.manual_optimization import is_manual
from compat.engine.optimizer_state import per_parameter
from compat.engine.user_module import TRANSFERS, check_user_module, is_user_module
from compat.errors import ArgumentError
from compat.trainer.components.callbacks import made
from compat.trainer.components.user_module import check_manual
from compat.trainer.datamodule_dataset import DataModuleDataset, as_dataset
from compat.upstream.distributions import check_distribution
from compat.upstream.models import uncompiled
from compat.upstream.patched import own_signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from transformers import TrainingArguments

    from compat.upstream.values import Batch

logger = logging.get_logger("transformers.trainer")

POSITIONS = {name: place - 1 for place, name in enumerate(own_signature().parameters)}
"""Parameter → its position, not counting `self`."""

DATASETS = ("train_dataset", "eval_dataset")
"""Parameters that take data."""

OF_MODEL = {
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "gradient_checkpointing": False,
}
"""Arguments that change an HF model → their neutral values."""

OPTIMIZERS = {"optimizer": "param_groups", "scheduler": "step"}
"""The parts of `optimizers` → an attribute that identifies each."""

STAND_INS = (DummyOptim, DummyScheduler)
"""What accelerate takes where DeepSpeed's configuration has optimizer and scheduler."""

GIVE_OPTIMIZERS = (
    "Give `optimizers=(optimizer, scheduler)`, objects or None; for a class of optimizers, "
    "`optimizer_cls_and_kwargs=(class, {…})`."
)
"""The advice in the error if `optimizers` is something else."""

FUNCTIONS = (
    "data_collator",
    "compute_loss_func",
    "model_init",
    "compute_metrics",
    "preprocess_logits_for_metrics",
)
"""Parameters that are called."""

HF_MODULE = "is_hf_module"
"""The attribute that marks `compat.HFModule` and classes derived from it."""


class BoundArguments:
    """The arguments of a call of HF's constructor.

    Args:
        args: the positional arguments without `self`.
        kwargs: the keyword arguments.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = list(args)
        self.kwargs = kwargs

    def __getitem__(self, name: str) -> Any:
        """Return the value of a parameter; None if it was not passed."""
        place = POSITIONS[name]
        return self.args[place] if place < len(self.args) else self.kwargs.get(name)

    def __setitem__(self, name: str, value: object) -> None:
        """Replace the value of a parameter."""
        place = POSITIONS[name]
        if place < len(self.args):
            self.args[place] = value
        else:
            self.kwargs[name] = value


def collate(rows: list[Any]) -> Batch:
    """Collate rows for a LightningModule: mappings with HF's collator, all else with torch's."""
    return default_data_collator(rows) if isinstance(rows[0], Mapping) else default_collate(rows)


def check_arguments(args: TrainingArguments, model: nn.Module) -> None:
    """Refuse arguments that would have to change a LightningModule.

    Raises:
        ArgumentError: names the arguments, and where to implement what they request.
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


def _check_loss(function: Callable[..., Any] | None, model: nn.Module) -> None:
    if function is not None:
        name = getattr(function, "__name__", type(function).__name__)
        msg = (
            f"`compute_loss_func={name}`: `{type(model).__name__}` is a LightningModule, and its "
            "`training_step` returns the loss. Leave it out, and compute the loss there."
        )
        raise ArgumentError(msg)


def _check_own_optimizers(bound: BoundArguments, model: nn.Module) -> None:
    """Refuse optimizers that a module's own ones would replace."""
    pair, pair_class = bound["optimizers"], bound["optimizer_cls_and_kwargs"]
    by_hand = is_manual(model)
    # Of a module that Lightning steps, a given optimizer takes the place.
    found = [f"optimizers=({', '.join(map(_named, pair))})"] if by_hand and any(pair or ()) else []
    if pair_class and (by_hand or is_overridden("configure_optimizers", model)):
        found.append(f"optimizer_cls_and_kwargs=({_named(pair_class[0])}, …)")
    if found:
        why = "optimizes manually, with its own optimizers" if by_hand else "brings its own optimizer"
        msg = (
            f"`{'`, `'.join(found)}`: `{type(model).__name__}` {why}. "
            "Leave it out, and configure it in `configure_optimizers`."
        )
        raise ArgumentError(msg)


def check_data(source: pl.LightningDataModule, argument: str) -> None:
    """Refuse a LightningDataModule that moves or changes batches, which HF's loaders already move.

    Raises:
        ArgumentError: names the hooks that it overrides.
    """
    found = [hook for hook in TRANSFERS if is_overridden(hook, source)]
    if found:
        msg = (
            f"`{argument}={type(source).__name__}`: it overrides `{'`, `'.join(found)}`, and batches are "
            "moved by HF's loaders. Do it in the collate function or in the module's steps."
        )
        raise ArgumentError(msg)


def check_kinds(bound: BoundArguments) -> None:
    """Refuse arguments of the wrong type.

    Raises:
        ArgumentError: names the parameter, the value, and what to pass instead.
    """
    model, args, callbacks = bound["model"], bound["args"], bound["callbacks"]
    if isinstance(model, type):
        msg = f"`model={model.__name__}`: a class. Give an instance of it, or `model_init={model.__name__}`."
        raise ArgumentError(msg)
    if isinstance(args, (Mapping, str)):
        msg = f"`args={type(args).__name__}`: not arguments. Give `args=TrainingArguments(…)`."
        raise ArgumentError(msg)
    if callbacks is not None and not isinstance(callbacks, Iterable):
        msg = f"`callbacks={type(callbacks).__name__}`: not a list. Give `callbacks=[…]`."
        raise ArgumentError(msg)
    for name in FUNCTIONS:
        if bound[name] is not None and not callable(bound[name]):
            msg = f"`{name}={_named(bound[name])}`: it cannot be called. Give a function, or leave it out."
            raise ArgumentError(msg)
    _check_loggers(args)
    _check_optimizers(bound["optimizers"])


def _check_loggers(args: Any) -> None:
    """Refuse objects where names are required, and names where Lightning requires objects."""
    names = getattr(args, "report_to", None)
    loggers = (getattr(args, "lightning", None) or {}).get("logger")
    for one in names if isinstance(names, list) else ():
        if not isinstance(one, str):
            msg = f"`report_to=[{_named(one)}]`: not a name. Give loggers as `lightning={{'logger': […]}}`."
            raise ArgumentError(msg)
    for one in loggers if isinstance(loggers, (list, tuple)) else (loggers,):
        if isinstance(one, (type, str)):
            msg = f"`lightning.logger={_named(one)}`: not a logger. Give an object, or a name as `report_to`."
            raise ArgumentError(msg)


def _check_optimizers(given: Any) -> None:
    is_pair = isinstance(given, Sequence) and len(given) == len(OPTIMIZERS)
    if given is not None and not is_pair:
        msg = f"`optimizers={_named(given)}`: not a pair. {GIVE_OPTIMIZERS}"
        raise ArgumentError(msg)
    for (what, wanted), one in zip(OPTIMIZERS.items(), given or (), strict=False):
        if one is None or isinstance(one, STAND_INS):
            continue
        # By the attributes that HF uses: classes of other libraries need not derive from torch's.
        if isinstance(one, type) or not hasattr(one, wanted):
            pair = ", ".join(map(_named, given))
            msg = f"`optimizers=({pair})`: {_named(one)} is no {what}. {GIVE_OPTIMIZERS}"
            raise ArgumentError(msg)
        if what == "optimizer" and _needs_closure(one):
            msg = (
                f"`optimizers=({', '.join(map(_named, given))})`: `{_named(one)}.step` needs a closure, "
                "which HF's Trainer does not give. Give another optimizer, or train a LightningModule with "
                "`automatic_optimization = False`, whose `training_step` calls it."
            )
            raise ArgumentError(msg)


def _needs_closure(optimizer: Any) -> bool:
    try:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
    except (TypeError, ValueError):  # without a signature, as functions in C are
        return False
    return closure is not None and closure.default is closure.empty


def warn_of_strangers(model: nn.Module, given: Any) -> None:
    """Warn of an optimizer that is not the model's, and of a scheduler that is not the optimizer's.

    HF's Trainer trains all the same, without any effect of theirs.

    Args:
        model: the model.
        given: a pair of optimizer and scheduler, or None.
    """
    optimizer, scheduler = given or (None, None)
    groups = getattr(optimizer, "param_groups", None)
    # A layerwise optimizer stands for those of the parameters.
    if optimizer is None or not isinstance(groups, list) or per_parameter(optimizer):
        return
    stepped = {id(parameter) for group in groups for parameter in group["params"]}
    if stepped and stepped.isdisjoint(map(id, model.parameters())):
        logger.warning(
            f"`optimizers=({_named(optimizer)}, …)`: none of its parameters is the model's, whose weights do "
            "not change, as under `transformers.Trainer`. Build it from the parameters of that model."
        )
    scheduled = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
    if isinstance(scheduled, list) and set(map(id, groups)).isdisjoint(map(id, scheduled)):
        logger.warning(
            f"`optimizers=(…, {_named(scheduler)})`: it schedules another optimizer than the one beside it, "
            "whose learning rate stays, as under `transformers.Trainer`. Build it from that optimizer."
        )


def _named(value: Any) -> str:
    """Describe a value in an error: a class or function by its name, an object by its class name."""
    if isinstance(value, type):
        return f"class {value.__name__}"
    return "None" if value is None else getattr(value, "__name__", type(value).__name__)


def adapt_inputs(bound: BoundArguments) -> list[Any]:
    """Convert what HF's constructor does not accept: a LightningModule, its data, Lightning's callbacks.

    Args:
        bound: the constructor's arguments; modified in place.

    Returns:
        Lightning's callbacks, in their order.

    Raises:
        ArgumentError: an argument has the wrong type; the module cannot be trained by an HF Trainer; a
            callback is none, or belongs to another distribution of Lightning.
    """
    check_kinds(bound)
    if bound["optimizers"] and hasattr(bound["model"], "parameters"):
        warn_of_strangers(bound["model"], bound["optimizers"])
    if (module := uncompiled(bound["model"])) is not bound["model"]:
        bound["model"] = module
    _adapt_model_and_data(bound)
    return _take_callbacks(bound)


def _adapt_model_and_data(bound: BoundArguments) -> None:
    model = bound["model"]
    check_distribution(model, "model")
    if getattr(type(model), HF_MODULE, False):
        bound["model"] = model = model.model
    if is_user_module(model):
        check_user_module(model)
        model.configure_model()
        check_arguments(bound["args"], model)
        check_manual(bound["args"], model)
        _check_own_optimizers(bound, model)
        _check_loss(bound["compute_loss_func"], model)
        if bound["data_collator"] is None:
            bound["data_collator"] = collate
        if bound["train_dataset"] is None and is_overridden("train_dataloader", model):
            bound["train_dataset"] = DataModuleDataset(model)
    for name in DATASETS:
        check_distribution(bound[name], name)
        if isinstance(bound[name], pl.LightningDataModule):
            check_data(bound[name], name)
            bound[name] = DataModuleDataset(bound[name])
        elif isinstance(bound[name], dict):
            bound[name] = {key: as_dataset(value) for key, value in bound[name].items()}
    source = bound["train_dataset"]
    validates = isinstance(source, DataModuleDataset) and is_overridden("val_dataloader", source.source)
    if validates and bound["eval_dataset"] is None:
        bound["eval_dataset"] = source


def _take_callbacks(bound: BoundArguments) -> list[Any]:
    callbacks = [part for one in bound["callbacks"] or () for part in getattr(one, "unwrapped", (one,))]
    for one in callbacks:
        check_place(one, "callbacks")
    if callbacks:
        bound["callbacks"] = [one for one in callbacks if not is_lightning_callback(one)]
    return [made(one) for one in callbacks if is_lightning_callback(one)]
