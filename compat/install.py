"""`install()`: our classes in the place of transformers', for code that knows only those."""

from __future__ import annotations

import itertools
import sys
import threading
import types
from typing import Any

from compat.errors import InstallError
from compat.patching import parsers_made_before, planned_changes

_ABSENT = object()

_lock = threading.RLock()
_undo: list[tuple[Any, str, Any]] = []


def installed() -> bool:
    """Whether `install()` is in force."""
    return bool(_undo)


def install() -> None:
    """Have scripts and libraries that use transformers' Trainer run on Lightning, unedited.

    Replaces the names in `compat.patching.PATCHES`, also where a loaded module has already imported them,
    puts our Trainer under every class that is already derived from transformers', gives our options to
    parsers that are already built, and adds the names in `SUPPLIED` that the installed release has dropped.
    Idempotent; every target is looked up before the first is touched, and a failure half-way undoes what was
    done.

    Raises:
        InstallError: a target is missing, or a class cannot be rebased; nothing has changed then.
    """
    with _lock:
        if installed():
            return
        changes = planned_changes()
        try:
            for owner, name, value in itertools.chain(changes, parsers_made_before()):
                original = getattr(owner, name, _ABSENT)
                setattr(owner, name, value)
                _undo.append((owner, name, original))
        except BaseException as error:
            uninstall()
            if not isinstance(error, TypeError):
                raise
            msg = (
                f"`{owner!r}`: cannot be put on compat's Trainer ({error}). "
                "Call `compat.install()` before importing it."
            )
            raise InstallError(msg) from error


def uninstall() -> None:
    """Undo `install()`: every name and every base class is what it was before."""
    with _lock:
        while _undo:
            owner, name, original = _undo.pop()
            if original is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


class _CallableModule(types.ModuleType):
    """Importing this file by its name puts the module where the function was: calling either installs."""

    def __call__(self) -> None:
        install()


sys.modules[__name__].__class__ = _CallableModule
