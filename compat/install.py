"""`install()`: replaces classes of transformers by ours, for code that only uses those."""

from __future__ import annotations

import itertools
import sys
import threading
import types
from typing import Any

from compat.errors import InstallError
from compat.patching import parsers_made_before, planned_changes
from compat.upstream.collector import paused

_ABSENT = object()

_lock = threading.RLock()
_undo: list[tuple[Any, str, Any]] = []


def installed() -> bool:
    """Whether `install()` is in force."""
    return bool(_undo)


def install() -> None:
    """Make unmodified scripts and libraries that use transformers' Trainer run on Lightning.

    Replaces the names in `compat.patching.PATCHES`, including those that loaded modules have already
    imported, makes our Trainer a base of every class already derived from transformers', adds our options to
    existing parsers, and adds the names in `SUPPLIED` that the installed release has removed. Idempotent.
    Every target is looked up before the first change, and a failure undoes all changes.

    Raises:
        InstallError: a target is missing, or a class cannot be rebased; nothing has changed.
    """
    with _lock:
        if installed():
            return
        with paused():
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
    """Undo `install()`: restore every name and every base class."""
    with _lock:
        while _undo:
            owner, name, original = _undo.pop()
            if original is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


class _CallableModule(types.ModuleType):
    """Importing this file by name replaces the function by the module: calling either one installs."""

    def __call__(self) -> None:
        install()


sys.modules[__name__].__class__ = _CallableModule
