"""Checks for `pytorch_lightning`, the other distribution of the code of `lightning.pytorch`."""

from __future__ import annotations

from dataclasses import dataclass

from compat.errors import ArgumentError

OTHER = "pytorch_lightning"


@dataclass(frozen=True)
class Role:
    """A kind of object that user code derives from classes of either distribution.

    Attributes:
        name: its base class, in both.
        module: where `lightning` has it and what is built on it.
        is_used: whether one that derives from the other's base class, and from no more of its classes, does
            its work here: hooks and methods are called by name. A module's own methods ask for their
            Trainer.
    """

    name: str
    module: str
    is_used: bool


ROLES = (
    Role("Callback", "lightning.pytorch.callbacks", is_used=True),
    Role("Logger", "lightning.pytorch.loggers", is_used=True),
    Role("Profiler", "lightning.pytorch.profilers", is_used=False),
    Role("LightningModule", "lightning.pytorch", is_used=False),
    Role("LightningDataModule", "lightning.pytorch", is_used=False),
)


def role_in_other(thing: object) -> Role | None:
    """Return the role of an object whose class derives from the other distribution; None for all others.

    Args:
        thing: an object, or a class.
    """
    names = {cls.__name__ for cls in _classes(thing)}
    return next((role for role in ROLES if role.name in names), None)


def check_distribution(thing: object, argument: str) -> None:
    """Refuse an object that only the other distribution's Trainer can use.

    Args:
        thing: an object, or a class.
        argument: the argument that it was passed to, for the message.

    Raises:
        ArgumentError: its class is built on one of the other distribution's that has its like in `lightning`:
            the import line to write.
    """
    role = role_in_other(thing)
    if role is None:
        return
    built_on = [cls for cls in _classes(thing) if cls.__name__ != role.name and _is_like(cls, role)]
    if role.is_used and not built_on:
        return
    name = built_on[0].__name__ if built_on else role.name
    kind = thing if isinstance(thing, type) else type(thing)
    msg = (
        f"`{argument}={kind.__name__}`: derives from `{OTHER}`'s `{name}`, which another distribution of "
        f"Lightning's Trainer works with. Write `from {role.module} import {name}`."
    )
    raise ArgumentError(msg)


def _classes(thing: object) -> list[type]:
    kind = thing if isinstance(thing, type) else type(thing)
    return [cls for cls in kind.__mro__ if cls.__module__.partition(".")[0] == OTHER]


def _is_like(cls: type, role: Role) -> bool:
    """Whether a class is one of the role's own, rather than something mixed into it."""
    return any(base.__name__ == role.name for base in cls.__mro__[1:])
