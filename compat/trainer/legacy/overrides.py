"""Calls overrides that have the signature of an older release.

A subclass of 2024 writes `compute_loss(self, model, inputs, return_outputs=False)`; since then HF also passes
`num_items_in_batch`, and such a subclass fails with a TypeError. Here an override receives only the arguments
that it takes. Signatures are inspected once for each trainer.
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

from transformers import Trainer as HFTrainer  # HF's own, also after `compat.install()`

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.engine.host import TrainerHost

CALLS: dict[str, tuple[int, tuple[str, ...]]] = {
    "training_step": (3, ()),
    "compute_loss": (2, ("num_items_in_batch",)),
    "log": (2, ()),
    "create_optimizer": (1, ()),
    "get_optimizer_cls_and_kwargs": (2, ()),
    "init_hf_repo": (0, ("token", "private")),
    "_get_train_sampler": (1, ()),
    "_load_from_checkpoint": (2, ()),
    "_wrap_model": (1, ("training", "dataloader")),
}
"""How HF calls the methods that have gained or lost parameters since 4.37: the number of positional
arguments, and the keyword arguments."""

BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Adapted:
    """An override of a trainer, called with only the arguments that it takes.

    Args:
        trainer: the trainer; held weakly.
        name: the method.
    """

    def __init__(self, trainer: TrainerHost, name: str) -> None:
        self._trainer = weakref.ref(trainer)
        self._name = name
        parameters = inspect.signature(self._method).parameters
        kinds = [parameter.kind for parameter in parameters.values()]
        takes_all = inspect.Parameter.VAR_POSITIONAL in kinds
        self._positions = None if takes_all else sum(kind in BY_POSITION for kind in kinds)
        takes_all = inspect.Parameter.VAR_KEYWORD in kinds
        self._dropped = () if takes_all else set(CALLS.get(name, (0, ()))[1]) - set(parameters)

    @property
    def trainer(self) -> Any:
        """The trainer."""
        return self._trainer()

    @property
    def _method(self) -> Any:
        # The instance attribute is this object; the method is on the class.
        return inspect.getattr_static(type(self.trainer), self._name).__get__(
            self.trainer, type(self.trainer)
        )

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call the override."""
        taken = {name: value for name, value in kwargs.items() if name not in self._dropped}
        return self._method(*args[: self._positions], **taken)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy belongs to the copied trainer.
        return type(self), (self.trainer, self._name)


class AdaptedStep(Adapted):
    """A `training_step` of 4.37, which relies on accelerate to divide the loss by its window."""

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call the override, and divide its losses."""
        trainer = self.trainer
        with trainer.accelerator.dividing_by(trainer.args.gradient_accumulation_steps):
            return super().__call__(*args, **kwargs)


class AdaptedSave(Adapted):
    """A `_save_checkpoint` of 4.37, which takes the metrics of the evaluation at the same step."""

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call the override, with `metrics`."""
        return super().__call__(*args, **{"metrics": self.trainer._backports.metrics_of_step(), **kwargs})


class AdaptedLoad(Adapted):
    """A `_load_from_checkpoint` that takes no model, and so cannot load into one that is sharded.

    HF passes the model only if it is sharded. Its own method then loads the shards.
    """

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call the override, or HF's method."""
        trainer = self.trainer
        if not trainer.is_fsdp_enabled:
            return super().__call__(*args, **kwargs)
        return HFTrainer._load_from_checkpoint(trainer, args[0], trainer.model_wrapped)


KINDS = {"training_step": AdaptedStep, "_load_from_checkpoint": AdaptedLoad}


def adapt_overrides(trainer: Any, own: type) -> None:
    """Have a trainer call the overrides of older releases with the arguments that they take.

    Args:
        trainer: the trainer.
        own: the class whose methods are overridden.
    """
    for name, (positions, names) in CALLS.items():
        if _is_overridden(trainer, own, name) and not _can_be_called(trainer, name, positions, names):
            setattr(trainer, name, KINDS.get(name, Adapted)(trainer, name))
    save = "_save_checkpoint"
    if _is_overridden(trainer, own, save) and _takes(trainer._save_checkpoint, "metrics"):
        setattr(trainer, save, AdaptedSave(trainer, save))


def is_adapted(trainer: TrainerHost, name: str) -> bool:
    """Whether the override `name` of a trainer has the signature of an older release."""
    return isinstance(vars(trainer).get(name), Adapted)


def _is_overridden(trainer: TrainerHost, own: type, name: str) -> bool:
    return getattr(type(trainer), name) is not getattr(own, name)


def _takes(method: Callable[..., Any], parameter: str) -> bool:
    return parameter in inspect.signature(method).parameters


def _can_be_called(trainer: TrainerHost, name: str, positions: int, names: tuple[str, ...]) -> bool:
    try:
        inspect.signature(getattr(trainer, name)).bind(*range(positions), **dict.fromkeys(names))
    except TypeError:
        return False
    return True
