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

# The forms that HF's parser of command lines understands.
_TYPES: dict[str, Any] = {
    "bool": Optional[bool],
    "int": Optional[int],
    "float": Optional[float],
    "dict": Optional[Union[dict, str]],
}

COMPLETE = "accelerate_environment"
"""An attribute that an instance has once it has been set up."""

OURS = "lightning"
"""The one field that no release of HF's has."""

FIELDS_OF_DATACLASS = "__dataclass_fields__"
"""Where dataclasses keep what a class's fields are."""


class OtherName:
    """Attribute access by the name of another generation.

    Where another name says the same, it is a view on that one; otherwise it holds the value that was given.
    Where nobody has given one, `hasattr` and `getattr` find nothing, as with the installed release, and
    `args.name` of a script that was written for another generation is that one's default.

    Args:
        field: the argument.
        default: what a subclass gives where its caller does not.
    """

    def __init__(self, field: Field, default: Any = None) -> None:
        self.field = field
        self.default = default

    def __get__(self, args: Any, owner: type | None = None) -> Any:
        # On the class it is what dataclasses take for the default.
        if args is None:
            return self.default
        values = vars(args)
        if self.field.name in values:
            return values[self.field.name]
        # A copy of the arguments gets what is said by the other name, and must not be told twice.
        if is_read_by_dataclasses() or COMPLETE not in values:
            return None
        # A subclass that has the name for itself, and empty, has it empty until it is given.
        own = own_fields(type(args))
        if self.field.name in own.keys() - args.given_otherwise.keys() and own[self.field.name] is None:
            return None
        found = migration(self.field.name, native_defaults(type(args)))
        if found is not None:
            return found.read(values)
        # Libraries tell releases apart by such names.
        if is_read_by_name() and not is_present(args, self.field.name):
            msg = f"{type(args).__name__!r} object has no attribute {self.field.name!r}"
            raise AttributeError(msg)
        return self.field.default

    def __set__(self, args: Any, value: Any) -> None:
        values = vars(args)
        found = migration(self.field.name, native_defaults(type(args)))
        if value is None:
            values.pop(self.field.name, None)
        elif found is None or COMPLETE not in values:
            values[self.field.name] = value
        else:
            found.write(values, value, {})
            if self.field.name in own_fields(type(args)):
                values["given_otherwise"] = {**args.given_otherwise, self.field.name: value}


def is_present(args: Any, name: str) -> bool:
    """Whether arguments have a field: their release or their class has it, or somebody has set it.

    Args:
        args: the arguments.
        name: the name of a field of any generation.
    """
    kind, values = type(args), vars(args)
    if name == OURS:
        return values.get(name) is not None
    return name not in getattr(kind, "other_names", ()) or name in values or name in own_fields(kind)


class PresentFields:
    """The fields of a class of arguments; an instance's are those that are present.

    Args:
        fields: what dataclasses have made of the class.
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
"""The arguments that a class's release has itself, and the class's own, with their defaults."""


def _place_of_ours(kind: Any) -> int:
    return next(place for place, base in enumerate(kind.__mro__) if "other_names" in vars(base))


def _names_of_subclass(kind: Any) -> tuple[str, ...]:
    later = kind.__mro__[: _place_of_ours(kind)]
    return tuple(dict.fromkeys(name for base in later[::-1] for name in inspect.get_annotations(base)))


names_of_subclass: Callable[[Any], tuple[str, ...]] = functools.cache(_names_of_subclass)
"""What a subclass of ours declares itself, in its order."""


def _own_fields(kind: Any) -> dict[str, Any]:
    hf = kind.__mro__[_place_of_ours(kind) + 1]
    inherited = {field.name for field in dataclasses.fields(hf)}
    own = {field.name: _default(field) for field in dataclasses.fields(kind) if field.name not in inherited}
    return {name: own[name] for name in names_of_subclass(kind) if name in own}


own_fields: Callable[[Any], dict[str, Any]] = functools.cache(_own_fields)
"""The fields that a subclass has beyond HF's, in its order, with their defaults; some may have the names of
other generations."""


def drop_overruled(values: dict[str, Any], kind: Any) -> None:
    """Forget a subclass's default by an old name, where a caller says another thing by today's.

    Args:
        values: the arguments as they were given, which change.
        kind: the class of arguments.
    """
    native = native_defaults(kind)
    for name, default in own_fields(kind).items():
        found = migration(name, native) if name in kind.other_names else None
        if found is not None and values.get(name) == default and values.get(found.says) != native[found.says]:
            values.pop(name, None)


def uncover(kind: Any) -> None:
    """Put access by other names back where a subclass's own defaults and fields, plain values, hide it.

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
    """A dataclass derived from `base` that has a field for every name of every generation.

    Args:
        base: HF's class of arguments.
        module: where the class will be said to live.

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
    # A switch may stand alone on the command line.
    switch = {"nargs": "?", "const": True} if field.kind.startswith("bool") else {}
    return dataclasses.field(default=None, metadata={"help": explained(field.name), **switch})


def explained(name: str) -> str:
    """What to do about a name of another generation, in one sentence."""
    found = OLD.get(name) or NEW.get(name)
    if found is not None:
        return f"{'Old' if FIELDS[name].is_old else 'New'} name: the same is said by {found.says}."
    if name in ALONE:
        return f"transformers 5 no longer has it: {ALONE[name]}."
    return "It came with transformers 5."


def warn_of_old_names(names: Iterable[str]) -> None:
    """One warning for each old name that was given, with the new one, at the line that gave it."""
    for name in names:
        found = OLD.get(name)
        advice = (
            f"say it by `{found.says}`, which holds for every release"
            if found is not None
            else f"transformers 5 no longer has it ({ALONE[name]})"
        )
        warnings.warn(f"`{name}` is an old name: {advice}.", FutureWarning, stacklevel=distance_to_user())
