"""The names of Sentence Transformers: its trainers and arguments based on ours, all others unchanged."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from compat.errors import MissingLibraryError
from compat.rebasing import on_lightning, ours_for, posing_as
from compat.sentence_transformers.older import OlderMethods
from compat.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY = "sentence_transformers"

HOMES = (
    LIBRARY,
    f"{LIBRARY}.cross_encoder",
    f"{LIBRARY}.sparse_encoder",
    f"{LIBRARY}.base.trainer",
    f"{LIBRARY}.base.training_args",
)
"""The modules in which a name is looked up, in this order; a release may lack some."""

_ABSENT = object()


@functools.cache
def face(name: str) -> Any:
    """Return the object that a name of Sentence Transformers refers to here.

    Args:
        name: a public name, or the name of a module.

    Returns:
        A trainer or an arguments class on Lightning, or the unchanged object of that name.

    Raises:
        MissingLibraryError: Sentence Transformers is not installed.
        AttributeError: Sentence Transformers has no such name.
    """
    _check_installed()
    found = next((value for value in _values(name) if value is not _ABSENT), _ABSENT)
    if found is _ABSENT:
        release = getattr(importlib.import_module(LIBRARY), "__version__", "")
        msg = (
            f"sentence-transformers {release} has no name {name!r}. "
            "Check the spelling, or import it from where it lives."
        )
        raise AttributeError(msg)
    if not isinstance(found, type) or ours_for(found) is None:
        return found
    ours = on_lightning(found)
    if not issubclass(ours, Trainer):
        return ours
    # `Trainer` is named explicitly, because `compat.uninstall()` removes it from the bases of a class that
    # `compat.install()` has changed.
    return posing_as(found, (OlderMethods, ours, Trainer), (face, (name,)))


def _check_installed() -> None:
    try:
        importlib.import_module(LIBRARY)
    except ModuleNotFoundError as error:
        if error.name != LIBRARY:
            raise
        msg = (
            "`compat.sentence_transformers`: Sentence Transformers is not installed. "
            "Run `pip install 'lightning-hf-compat[sentence-transformers]'`."
        )
        raise MissingLibraryError(msg) from error


def _values(name: str) -> Iterator[Any]:
    """Yield the objects of a name, modules last: the library and some of its parts have a `losses`."""
    found = [getattr(_module(home), name, _ABSENT) for home in HOMES]
    yield from (value for value in found if not isinstance(value, ModuleType))
    # A release that has moved its modules warns about the older path.
    yield _module(f"{LIBRARY}.sentence_transformer.{name}") or _module(f"{LIBRARY}.{name}") or _ABSENT


def _module(name: str) -> ModuleType | None:
    """Import a module of the installed release; return None if there is none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        return None
