"""Base class for the components of a trainer."""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from compat.engine.host import TrainerHost


class Component:
    """An object that handles one concern of a trainer and holds its state.

    Args:
        trainer: the trainer; held weakly, so that a dropped trainer is freed at once, with the workers of its
            dataloaders.
    """

    def __init__(self, trainer: TrainerHost) -> None:
        self._trainer = weakref.ref(trainer)

    @property
    def hf(self) -> TrainerHost:
        """The trainer."""
        return self._trainer()  # type: ignore[return-value]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_trainer"}

    def copied_to(self, trainer: TrainerHost) -> Component:
        """Copy the component, with its state, to another trainer."""
        twin = copy.copy(self)
        twin._trainer = weakref.ref(trainer)
        return twin


Kind = TypeVar("Kind", bound=Component)


class Slot(Generic[Kind]):
    """An attribute that creates its component when it is first read.

    A trainer therefore has its components while HF's constructor is running, and if no constructor ran.

    Args:
        kind: the class of the component.
    """

    def __init__(self, kind: type[Kind]) -> None:
        self._kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, trainer: Any, owner: type) -> Kind:
        made = vars(trainer)[self._name] = self._kind(trainer)
        return made


def restore(trainer: TrainerHost, state: dict[str, Any]) -> None:
    """Give a copied trainer its attributes, and components of its own.

    Args:
        trainer: the copy.
        state: the attributes of the original.
    """
    for name, value in state.items():
        own = value.copied_to(trainer) if isinstance(value, Component) else value
        vars(trainer)[name] = own
