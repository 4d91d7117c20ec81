"""Determines which package has the TRL names of a script: the installed TRL or `compat.trl`."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING

from compat.trl.detect.usage import TRL, Use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OURS = "compat.trl"
"""The package with TRL 0.7.11's interface."""

_ABSENT = object()


def installed_release() -> str:
    """Describe the installed TRL."""
    try:
        return f"TRL {importlib.metadata.version(TRL)}"
    except importlib.metadata.PackageNotFoundError:
        return "this environment, without TRL,"


def missing_from_installed(used: set[Use], installed: str = TRL) -> list[Use]:
    """Return the uses that the installed TRL lacks if `compat.trl` has all uses; otherwise nothing.

    If a module or class is missing, its members are omitted from the list.

    Args:
        used: the uses of a script.
        installed: the import name of the installed package.
    """
    if not used:
        return []
    missing = missing_uses(used, installed)
    if not missing or missing_uses(used, OURS):
        return []
    absent = {use.path for use in missing if use == Use(use.path)}
    return sorted({replace(use, others=()) for use in missing if not _is_within(use, absent)})


def _is_within(use: Use, absent: set[str]) -> bool:
    """Whether the module or class of a use is itself missing."""
    parents = {use.path[:at] for at, letter in enumerate(use.path) if letter == "."}
    return bool(parents & absent) or (use != Use(use.path) and use.path in absent)


def missing_uses(used: Iterable[Use], package: str) -> list[Use]:
    """Return the uses that a package does not support, sorted.

    Args:
        used: the uses of a script.
        package: the import name of the package, "trl" or "compat.trl".
    """
    return sorted(use for use in used if not _supports(package, use))


def _supports(package: str, use: Use) -> bool:
    found = _find(package, use.path)
    if found is _ABSENT:
        return False
    if use.member and isinstance(found, type):
        kinds = [found, *(_find(package, path) for path in use.others)]
        # Attributes set in a constructor are invisible here: only 0.7.11's methods and fields count.
        return any(_has_member(kind, use.member) for kind in kinds) or not _is_member_of_ours(use)
    return not use.keyword or not callable(found) or _accepts(found, use.keyword)


def _find(package: str, path: str) -> object:
    """Resolve a dotted name, and import the modules that it contains."""
    try:
        found: object = importlib.import_module(package)
    except ImportError:
        return _ABSENT
    at = package
    for name in filter(None, path.split(".")):
        at = f"{at}.{name}"
        value = _attribute(found, name)
        if value is _ABSENT:
            try:
                value = importlib.import_module(at)
            except Exception:  # noqa: BLE001 (a broken release supports nothing)
                return _ABSENT
        found = value
    return found


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name, _ABSENT)
    except Exception:  # noqa: BLE001 (lazy modules raise any error of their import)
        return _ABSENT


def _has_member(kind: object, member: str) -> bool:
    return hasattr(kind, member) or _is_field(kind, member)


def _is_field(kind: object, member: str) -> bool:
    return member in getattr(kind, "__dataclass_fields__", ())


def _is_member_of_ours(use: Use) -> bool:
    kind = _find(OURS, use.path)
    return callable(getattr(kind, use.member, None)) or _is_field(kind, use.member)


def _accepts(function: Callable[..., object], keyword: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    is_variadic = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return is_variadic or keyword in parameters
