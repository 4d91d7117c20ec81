"""Sentence Transformers' names: its trainers and arguments on ours, all others unchanged."""

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
"""Where a name is looked up, one after the other; a release may lack some."""

_ABSENT = object()


@functools.cache
def face(name: str) -> Any:
    """What a name of Sentence Transformers' stands for here.

    Args:
        name: a public name, or that of one of its modules.

    Returns:
        A trainer or a class of arguments on Lightning, or whatever else has the name there.

    Raises:
        MissingLibraryError: Sentence Transformers is not installed.
        AttributeError: it has no such name.
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
    # Ours by name: `compat.uninstall()` takes it from under a class that `compat.install()` has put on it.
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
    """What has the name, modules last: `losses` is one of the library, and one of some of its parts."""
    found = [getattr(_module(home), name, _ABSENT) for home in HOMES]
    yield from (value for value in found if not isinstance(value, ModuleType))
    # Where a release has moved its modules, it warns of the older place.
    yield _module(f"{LIBRARY}.sentence_transformer.{name}") or _module(f"{LIBRARY}.{name}") or _ABSENT


def _module(name: str) -> ModuleType | None:
    """A module of the installed release; None where it has none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        return None
