# ruff: noqa: UP007, UP045 (the types are objects, which HF's parser of command lines takes apart)
"""Fields for the names of other generations, on a class that is built from the installed release's."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from typing import TYPE_CHECKING, Any, Optional, Union

from compat.arguments.callers import distance_to_user, is_read_by_dataclasses, is_read_by_name
from compat.arguments.fields import FIELDS, Field
from compat.arguments.generations import ALONE, NEW, OLD, migration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The types that HF's command-line parser understands.
_TYPES: dict[str, Any] = {
    "bool": Optional[bool],
    "int": Optional[int],
    "float": Optional[float],
    "dict": Optional[Union[dict, str]],
}

COMPLETE = "accelerate_environment"
"""An attribute that an instance has after its initialization."""

OURS = "lightning"
"""The only field that no HF release has."""

FIELDS_OF_DATACLASS = "__dataclass_fields__"
"""The attribute in which `dataclasses` stores a class's fields."""


class OtherName:
    """Attribute access by the name of another generation.

    If another name has the same meaning, this is an alias of that name; otherwise it holds the value that was
    passed. If no value was passed, `hasattr` and `getattr` find nothing, as with the installed release, and
    `args.name` in a script for another generation returns that generation's default.

    Args:
        field: the argument.
        default: the default of a subclass.
    """

    def __init__(self, field: Field, default: Any = None) -> None:
        self.field = field
        self.name = field.name
        self.default = default

    def __get__(self, args: Any, owner: type | None = None) -> Any:
        # On the class, `dataclasses` uses this as the default.
        if args is None:
            return self.default
        values = vars(args)
        if self.name in values:
            return values[self.name]
        # A copy of the arguments receives the value under the other name, and must not receive it twice.
        if is_read_by_dataclasses() or COMPLETE not in values:
            return None
        # If a subclass defines the name as None, it stays None until a value is passed.
        own = own_fields(type(args))
        if self.name in own.keys() - args.given_otherwise.keys() and own[self.name] is None:
            return None
        found = migration(self.name, native_defaults(type(args)))
        if found is not None:
            return found.read(values)
        # Libraries distinguish releases by such names.
        if is_read_by_name() and not is_present(args, self.name):
            msg = f"{type(args).__name__!r} object has no attribute {self.name!r}"
            raise AttributeError(msg)
        return self.field.default

    def __set__(self, args: Any, value: Any) -> None:
        values = vars(args)
        if value is None:
            values.pop(self.name, None)
            return
        found = migration(self.name, native_defaults(type(args)))
        if found is None or COMPLETE not in values:
            values[self.name] = value
        else:
            found.write(values, value, {})
            if self.name in own_fields(type(args)):
                values["given_otherwise"] = {**args.given_otherwise, self.name: value}


def is_present(args: Any, name: str) -> bool:
    """Whether arguments have a field: their release or their class defines it, or it has been set.

    Args:
        args: the arguments.
        name: the name of a field of any generation.
    """
    kind, values = type(args), vars(args)
    if name == OURS:
        return values.get(name) is not None
    return name not in getattr(kind, "other_names", ()) or name in values or name in own_fields(kind)


class PresentFields:
    """The fields of a class of arguments; an instance has only those that are present.

    Args:
        fields: the fields that `dataclasses` created for the class.
    """

    def __init__(self, fields: dict[str, dataclasses.Field[Any]]) -> None:
        self.fields = fields

    def __get__(self, args: Any, owner: type | None = None) -> dict[str, dataclasses.Field[Any]]:
        if args is None:
            return self.fields
        return {name: field for name, field in self.fields.items() if is_present(args, name)}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _native_defaults(kind: Any) -> dict[str, Any]:
    return {
        field.name: _default(field)
        for field in dataclasses.fields(kind)
        if field.name not in getattr(kind, "other_names", ())
    }


native_defaults: Callable[[Any], dict[str, Any]] = functools.cache(_native_defaults)
"""Return the arguments of a class's release and of the class itself, with their defaults."""


def _place_of_ours(kind: Any) -> int:
    return next(place for place, base in enumerate(kind.__mro__) if "other_names" in vars(base))


def _names_of_subclass(kind: Any) -> tuple[str, ...]:
    later = kind.__mro__[: _place_of_ours(kind)]
    return tuple(dict.fromkeys(name for base in later[::-1] for name in inspect.get_annotations(base)))


names_of_subclass: Callable[[Any], tuple[str, ...]] = functools.cache(_names_of_subclass)
"""Return the fields that a subclass of ours declares itself, in order."""


def _own_fields(kind: Any) -> dict[str, Any]:
    hf = kind.__mro__[_place_of_ours(kind) + 1]
    inherited = {field.name for field in dataclasses.fields(hf)}
    own = {field.name: _default(field) for field in dataclasses.fields(kind) if field.name not in inherited}
    return {name: own[name] for name in names_of_subclass(kind) if name in own}


own_fields: Callable[[Any], dict[str, Any]] = functools.cache(_own_fields)
"""The fields that a subclass has beyond HF's, in its order, with their defaults; some may have the names of
other generations."""


def drop_overruled(values: dict[str, Any], kind: Any) -> None:
    """Drop a subclass's default under an old name if a caller passes another value under the new one.

    Args:
        values: the arguments as they were passed; modified in place.
        kind: the class of arguments.
    """
    native = native_defaults(kind)
    for name, default in own_fields(kind).items():
        found = migration(name, native) if name in kind.other_names else None
        if found is not None and values.get(name) == default and values.get(found.says) != native[found.says]:
            values.pop(name, None)


def uncover(kind: Any) -> None:
    """Restore access by other names where a subclass's plain defaults and fields hide it.

    Args:
        kind: the class of arguments. Not once for each: `install()` may have changed it since.
    """
    for base in [base for base in kind.__mro__ if hasattr(base, "other_names")]:
        values = vars(base)
        for name in kind.other_names & values.keys():
            if not hasattr(values[name], "__get__"):
                setattr(base, name, OtherName(FIELDS[name], values[name]))
        if isinstance(fields := values.get(FIELDS_OF_DATACLASS), dict):
            setattr(base, FIELDS_OF_DATACLASS, PresentFields(fields))


def with_other_names(base: type[Any], module: str) -> type[Any]:
    """Create a dataclass derived from `base` with a field for every name of every generation.

    Args:
        base: HF's class of arguments.
        module: the `__module__` of the class.

    Returns:
        The class. Its `other_names` are those that `base` lacks.
    """
    own = {field.name for field in dataclasses.fields(base)}
    others = [field for name, field in FIELDS.items() if name not in own and not field.seq2seq]
    kind = dataclasses.make_dataclass(
        f"{base.__name__}OfAllGenerations",
        [
            (field.name, _TYPES.get(field.kind.rstrip("?"), Optional[str]), _declared(field))
            for field in others
        ],
        bases=(base,),
        namespace={"__module__": module, "__doc__": base.__doc__},
        repr=False,
    )
    for field in others:
        setattr(kind, field.name, OtherName(field))
    made: Any = kind
    made.other_names = frozenset(field.name for field in others)
    return kind


def _declared(field: Field) -> Any:
    # A switch needs no value on the command line.
    switch = {"nargs": "?", "const": True} if field.kind.startswith("bool") else {}
    return dataclasses.field(default=None, metadata={"help": explained(field.name), **switch})


def explained(name: str) -> str:
    """Return one sentence on what to do about a name of another generation."""
    found = OLD.get(name) or NEW.get(name)
    if found is not None:
        return f"{'Old' if FIELDS[name].is_old else 'New'} name: the same is said by {found.says}."
    if name in ALONE:
        return f"transformers 5 no longer has it: {ALONE[name]}."
    return "It came with transformers 5."


def warn_of_old_names(names: Iterable[str]) -> None:
    """Warn for each old name that was passed, with the new name, at the line that passed it."""
    for name in names:
        found = OLD.get(name)
        advice = (
            f"say it by `{found.says}`, which holds for every release"
            if found is not None
            else f"transformers 5 no longer has it ({ALONE[name]})"
        )
        warnings.warn(f"`{name}` is an old name: {advice}.", FutureWarning, stacklevel=distance_to_user())
