"""Refuses objects that are passed as callbacks but belong elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import lightning.pytorch as pl
import torchmetrics
import transformers
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, Precision
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from compat.errors import ArgumentError
from compat.upstream.distributions import role_in_other

if TYPE_CHECKING:
    from collections.abc import Callable

PLACES: tuple[tuple[Any, str], ...] = (
    (Logger, "Name it in `args.report_to`, or give `lightning={'logger': …}`."),
    (Profiler, "Give `lightning={'profiler': …}`."),
    (Strategy, "Give its name as `lightning={'strategy': …}`."),
    (Accelerator, "Give its name as `lightning={'accelerator': …}`."),
    ((CheckpointIO, ClusterEnvironment, Precision), "Give `lightning={'plugins': […]}`."),
    ((pl.LightningDataModule, DataLoader, Dataset), "Give `train_dataset=…`."),
    (torchmetrics.Metric, "Give `compute_metrics=…`."),
    (nn.Module, "Give `model=…`."),
    ((Optimizer, LRScheduler), "Give `optimizers=(optimizer, scheduler)`."),
    (transformers.TrainingArguments, "Give `args=…`."),
)
"""Kind of object → where to pass it."""

OF_NO_PLACE = "Give a `transformers.TrainerCallback`, a `lightning.pytorch.Callback`, or a class of these."

EVENT = "on_init_end"
"""The method that HF's handler calls first on any object."""


def is_lightning_callback(callback: object) -> bool:
    """Whether a callback, or its class, is for Lightning's Trainer, of either distribution."""
    kind = callback if isinstance(callback, type) else type(callback)
    role = role_in_other(kind)
    return issubclass(kind, pl.Callback) or (role is not None and role.name == "Callback")


def check_place(thing: object, argument: str, *, takes_hf: bool = True) -> None:
    """Refuse an object that is no callback.

    Args:
        thing: an object, or a class.
        argument: the argument that it was passed to, for the message.
        takes_hf: whether the argument takes HF's callbacks as well as Lightning's.

    Raises:
        ArgumentError: names the class of the object, and where it belongs.
    """
    if is_lightning_callback(thing):
        return
    kind = thing if isinstance(thing, type) else type(thing)
    place = next((place for kinds, place in PLACES if issubclass(kind, kinds)), None)
    is_hfs = place is None and hasattr(thing, EVENT)
    if is_hfs and takes_hf:
        return
    name = getattr(thing, "__name__", kind.__name__)
    why = (
        "a callback of Hugging Face's. Give `callbacks=[…]`."
        if is_hfs
        else f"no callback. {place or OF_NO_PLACE}"
    )
    msg = f"`{argument}=[{name}]`: {why}"
    raise ArgumentError(msg)


class Refusal(pl.Callback):
    """Raises an error in Lightning if its callbacks include objects that it cannot call.

    Args:
        error: the error.
    """

    def __init__(self, error: ArgumentError) -> None:
        self.error = error

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> NoReturn:
        getattr(trainer, "callbacks").remove(self)  # noqa: B009 (no attribute of the class)
        raise self.error


def refusing_callbacks_of_hf(configure_callbacks: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a module's hook, to refuse HF's callbacks in the Lightning Trainer and the module.

    It is the first hook that Lightning calls on a module, before the callbacks' own first hook.

    Args:
        configure_callbacks: the hook, as a function of the module.
    """

    @functools.wraps(configure_callbacks)
    def checked(module: pl.LightningModule) -> Any:
        _refuse_callbacks_of_hf(module.trainer, getattr(module.trainer, "callbacks"))  # noqa: B009
        own = configure_callbacks(module)
        _refuse_callbacks_of_hf(module.trainer, own if isinstance(own, Sequence) else [own])
        return own

    return checked


def _refuse_callbacks_of_hf(trainer: pl.Trainer, callbacks: Sequence[Any]) -> None:
    for one in callbacks:
        kind = one if isinstance(one, type) else type(one)
        if issubclass(kind, transformers.TrainerCallback):
            msg = (
                f"`callbacks=[{kind.__name__}]`: a callback of Hugging Face's, and Lightning's Trainer calls "
                f"other hooks. Give `callbacks=[compat.callbacks.to_lightning({kind.__name__}(…))]`."
            )
            error = ArgumentError(msg)
            # Lightning notifies the callbacks of an error, and fails at the one that lacks the hook.
            getattr(trainer, "callbacks").insert(0, Refusal(error))  # noqa: B009 (no attribute of the class)
            raise error
