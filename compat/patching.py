"""What `compat.install()` replaces in transformers and in the modules that have imported from it."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.errors import InstallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


@dataclass(frozen=True)
class Patch:
    """One name that is replaced.

    Attributes:
        module: where the name is looked up.
        name: the name.
        ours: `module:name` of what takes its place.
    """

    module: str
    name: str
    ours: str


def _patches(name: str, modules: tuple[str, ...], ours: str) -> tuple[Patch, ...]:
    return tuple(Patch(module, name, f"{ours}:{name}") for module in modules)


PATCHES = (
    *_patches("Trainer", ("transformers", "transformers.trainer"), "compat.trainer"),
    *_patches("Seq2SeqTrainer", ("transformers", "transformers.trainer_seq2seq"), "compat.trainer"),
    *_patches("TrainingArguments", ("transformers", "transformers.training_args"), "compat.arguments"),
    *_patches(
        "Seq2SeqTrainingArguments",
        ("transformers", "transformers.training_args_seq2seq"),
        "compat.arguments",
    ),
    *_patches("HfArgumentParser", ("transformers", "transformers.hf_argparser"), "compat.arguments.parser"),
)
"""Every name that `install()` replaces."""

_REMOVED = "compat.upstream.removed_names"

SUPPLIED = (
    *_patches("EvaluationStrategy", ("transformers.trainer_utils",), _REMOVED),
    *_patches("send_example_telemetry", ("transformers.utils",), _REMOVED),
    *_patches("top_k_top_p_filtering", ("transformers",), _REMOVED),
    *_patches("is_torch_tpu_available", ("transformers", "transformers.utils"), _REMOVED),
)
"""Every name that `install()` adds where the installed release has dropped it."""


def planned_changes() -> list[tuple[Any, str, Any]]:
    """Look every target up; nothing is changed yet.

    Returns:
        Owner, attribute and new value of each change, in the order in which they are to be made.

    Raises:
        InstallError: a target is missing.
    """
    held = list(sys.modules.values())  # some may be replaced while ours are imported
    replacements = _resolve()
    bases = _bases(replacements)
    return [*_names(replacements, held), *bases, *_constructors(bases), *_removed_names()]


def _resolve() -> dict[tuple[str, str], tuple[Any, Any]]:
    """(module, name) → the class that is there, and ours."""
    found = {}
    for patch in PATCHES:
        module, _, name = patch.ours.partition(":")
        ours = getattr(importlib.import_module(module), name)
        try:
            original = getattr(importlib.import_module(patch.module), patch.name)
        except (ImportError, AttributeError) as error:
            msg = (
                f"`{patch.module}.{patch.name}`: not found in the installed release ({error}). "
                "Update compat or transformers."
            )
            raise InstallError(msg) from error
        found[patch.module, patch.name] = (original, ours)
    return found


def _names(
    replacements: dict[tuple[str, str], tuple[Any, Any]], held: list[Any]
) -> list[tuple[Any, str, Any]]:
    """The listed names, and the same classes under any name in any other loaded module."""
    listed = [
        (owner, name, ours)
        for (module, name), (_, ours) in replacements.items()
        for owner in _modules_named(module, held)
    ]
    ours_by_original = {id(original): ours for original, ours in replacements.values()}
    seen = {(id(module), name) for module, name, _ in listed}
    copies = [
        (module, name, ours_by_original[id(value)])
        for module in list(sys.modules.values())
        if _may_hold_copies(module)
        for name, value in list(vars(module).items())
        if id(value) in ours_by_original and (id(module), name) not in seen
    ]
    return listed + copies


def _modules_named(name: str, held: list[Any]) -> list[Any]:
    """The module of that name, and those that were it: transformers 4 replaces its own while it is imported.

    A script that has imported it before keeps the older one among its names.
    """
    older = {
        id(value): value
        for module in (*held, *sys.modules.values())
        for value in (module, *(list(vars(module).values()) if hasattr(module, "__dict__") else ()))
        # Not `isinstance`: an object that poses as another one warns of it, or loads what it stands for.
        if issubclass(type(value), types.ModuleType) and vars(value).get("__name__") == name
    }
    return list({**older, id(sys.modules[name]): sys.modules[name]}.values())


def _may_hold_copies(module: ModuleType) -> bool:
    # Ours, and transformers' own internals, need the originals to build upon.
    name = getattr(module, "__name__", None)
    return (
        isinstance(name, str)
        and hasattr(module, "__dict__")
        and name.split(".")[0] not in {"compat", "transformers"}
    )


def _bases(replacements: dict[tuple[str, str], tuple[Any, Any]]) -> list[tuple[Any, str, Any]]:
    """The classes already derived from a replaced one, with our class as their base."""
    pairs = dict(replacements.values())
    own = set(pairs) | set(pairs.values())
    return [
        (child, "__bases__", tuple(pairs.get(base, base) for base in child.__bases__))
        for original in pairs
        for child in original.__subclasses__()
        if child not in own and not child.__module__.startswith("compat.")
    ]


def _constructors(bases: list[tuple[Any, str, Any]]) -> list[tuple[Any, str, Any]]:
    """Constructors and fields of argument classes that were made before, and know one release's names alone.

    Parsers of command lines and files make an option of each field, and call the constructor with all.
    """
    from compat.arguments.names import FIELDS_OF_DATACLASS
    from compat.rebasing import is_generated, ours_for

    def all_fields(kind: Any) -> dict[str, Any]:
        return {**getattr(ours_for(kind), FIELDS_OF_DATACLASS), **getattr(kind, FIELDS_OF_DATACLASS)}

    return [
        change
        for kind in _with_descendants([kind for kind, _, _ in bases])
        # One that somebody has written hands on what it is given.
        if "__init__" in vars(kind) and is_generated(kind)
        for change in (
            (kind, "__init__", _taking_other_names(vars(kind)["__init__"])),
            (kind, FIELDS_OF_DATACLASS, all_fields(kind)),
        )
    ]


def parsers_made_before() -> Iterator[tuple[Any, str, Any]]:
    """What parsers that exist already become, as `planned_changes` gives it.

    Ask for the first one when all classes are changed: options are made from the classes that a parser fills.
    """
    from compat.arguments.made_before import options_of_parsers
    from compat.arguments.parser import HfArgumentParser
    from compat.rebasing import OURS, original_of

    yield from options_of_parsers({original_of(kind): kind for kind in (HfArgumentParser, *OURS)})


def _removed_names() -> list[tuple[Any, str, Any]]:
    """The names that scripts import and that the installed release has dropped."""
    found = []
    for patch in SUPPLIED:
        owner = importlib.import_module(patch.module)
        if not hasattr(owner, patch.name):
            module, _, name = patch.ours.partition(":")
            found.append((owner, patch.name, getattr(importlib.import_module(module), name)))
    return found


def _with_descendants(kinds: list[Any]) -> list[Any]:
    found = dict.fromkeys(kinds)
    for kind in kinds:
        found.update(dict.fromkeys(_with_descendants(kind.__subclasses__())))
    return list(found)


def _taking_other_names(constructor: Callable[..., Any]) -> Callable[..., Any]:
    taken = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def __init__(self: Any, *args: object, **kwargs: object) -> None:  # noqa: N807 (takes its place)
        for name in kwargs.keys() & {*getattr(self, "other_names", ()), "lightning"} - taken.keys():
            if (value := kwargs.pop(name)) is not None:
                vars(self)[name] = value
        constructor(self, *args, **kwargs)

    return __init__
