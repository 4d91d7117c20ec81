"""The names that `compat.install()` replaces in transformers and in modules that import from it."""

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
        module: the module of the name.
        name: the name.
        ours: `module:name` of its replacement.
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
"""Every name that `install()` adds if the installed release has removed it."""


def planned_changes() -> list[tuple[Any, str, Any]]:
    """Look up every target without changing anything.

    Returns:
        Owner, attribute and new value of each change, in the order of application.

    Raises:
        InstallError: a target is missing.
    """
    held = list(sys.modules.values())  # some may be replaced while ours are imported
    replacements = _resolve()
    bases = _bases(replacements)
    return [*_names(replacements, held), *bases, *_constructors(bases), *_removed_names()]


def _resolve() -> dict[tuple[str, str], tuple[Any, Any]]:
    """Return (module, name) → the current class, and ours."""
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
    """Return the listed names, and other names of the same classes in loaded modules."""
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
    """Return the module of a name, and its predecessors: transformers 4 replaces modules during import.

    A script that imported it before refers to the older module.
    """
    older = {
        id(value): value
        for module in (*held, *sys.modules.values())
        for value in (module, *(list(vars(module).values()) if hasattr(module, "__dict__") else ()))
        # Not `isinstance`: a proxy object may warn, or load the object that it represents.
        if issubclass(type(value), types.ModuleType) and vars(value).get("__name__") == name
    }
    return list({**older, id(sys.modules[name]): sys.modules[name]}.values())


def _may_hold_copies(module: ModuleType) -> bool:
    # Our code, and transformers' own internals, need the original classes.
    name = getattr(module, "__name__", None)
    return (
        isinstance(name, str)
        and hasattr(module, "__dict__")
        and name.split(".")[0] not in {"compat", "transformers"}
    )


def _bases(replacements: dict[tuple[str, str], tuple[Any, Any]]) -> list[tuple[Any, str, Any]]:
    """Return the new bases of classes already derived from a replaced one."""
    pairs = dict(replacements.values())
    own = set(pairs) | set(pairs.values())
    return [
        (child, "__bases__", tuple(pairs.get(base, base) for base in child.__bases__))
        for original in pairs
        for child in original.__subclasses__()
        if child not in own and not child.__module__.startswith("compat.")
    ]


def _constructors(bases: list[tuple[Any, str, Any]]) -> list[tuple[Any, str, Any]]:
    """Return new constructors and fields of existing argument classes, which accept one release's names.

    Parsers of command lines and files create an option for each field, and call the constructor with all of
    them.
    """
    from compat.arguments.names import FIELDS_OF_DATACLASS
    from compat.rebasing import is_generated, ours_for

    def all_fields(kind: Any) -> dict[str, Any]:
        return {**getattr(ours_for(kind), FIELDS_OF_DATACLASS), **getattr(kind, FIELDS_OF_DATACLASS)}

    return [
        change
        for kind in _with_descendants([kind for kind, _, _ in bases])
        # A hand-written constructor passes its arguments on.
        if "__init__" in vars(kind) and is_generated(kind)
        for change in (
            (kind, "__init__", _taking_other_names(vars(kind)["__init__"])),
            (kind, FIELDS_OF_DATACLASS, all_fields(kind)),
        )
    ]


def parsers_made_before() -> Iterator[tuple[Any, str, Any]]:
    """Yield the changes of existing parsers, in the format of `planned_changes`.

    Iterate only after all classes are changed: options are created from the classes that a parser fills.
    """
    from compat.arguments.made_before import options_of_parsers
    from compat.arguments.parser import HfArgumentParser
    from compat.rebasing import OURS, original_of

    yield from options_of_parsers({original_of(kind): kind for kind in (HfArgumentParser, *OURS)})


def _removed_names() -> list[tuple[Any, str, Any]]:
    """Return the names that scripts import and that the installed release has removed."""
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
