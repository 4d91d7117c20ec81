"""`on_lightning()`: bases a class of another library on our Trainer or arguments, without patching."""

from __future__ import annotations

import copy
import copyreg
import dataclasses
import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from compat.arguments import Seq2SeqTrainingArguments, TrainingArguments
from compat.arguments.fields import FIELDS
from compat.arguments.names import OtherName
from compat.arguments.setters import refuses_unknown_names
from compat.errors import RebaseError
from compat.trainer import Seq2SeqTrainer, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = TypeVar("Kind", bound=type[Any])

OURS = (Seq2SeqTrainer, Trainer, Seq2SeqTrainingArguments, TrainingArguments)
"""The replacement for HF's class of the same name; the most derived class comes first."""

ORIGINAL, MADE_BY = "_compat_original", "_compat_made_by"
"""Attributes of a class that poses as another one: that one, and the call that makes it."""


def on_lightning(kind: Kind) -> Kind:
    """Base a trainer class, or a class of arguments, of another library on Lightning.

    The class returned is derived from both: the library's code runs unchanged, and its `super()` is our class
    instead of HF's. It has the name, module and documentation of the original, and a trainer has its
    signature (arguments take more). Only `is` distinguishes the two classes: `isinstance` and `issubclass`
    hold in both directions. Nothing is patched: the original still runs on HF's Trainer. Arguments are
    pickled as instances of the original.

    Args:
        kind: a class derived from `transformers.Trainer` or `transformers.TrainingArguments`, such as
            `trl.SFTTrainer`; the result is the same for each call, and a class already on Lightning is
            returned unchanged.

    Raises:
        RebaseError: the class is derived from neither.
    """
    if not isinstance(kind, type):
        msg = f"`{kind!r}`: not a class. Give a trainer class, or a class of arguments."
        raise RebaseError(msg)
    if any(issubclass(kind, ours) for ours in OURS):
        return kind
    return cast("Kind", _rebased(kind))


def _make(kind: Any) -> Any:
    ours = ours_for(kind)
    if ours is None:
        msg = (
            f"`{kind.__module__}.{kind.__qualname__}`: derived neither from transformers.Trainer nor from "
            "transformers.TrainingArguments. If it makes such a trainer inside, call `compat.install()`."
        )
        raise RebaseError(msg)
    if kind is original_of(ours):
        return ours
    made_by = (on_lightning, (kind,))
    if dataclasses.is_dataclass(kind):
        return _with_all_names(posing_as(kind, (_SavedAsOriginal, kind, ours), made_by))
    made = posing_as(kind, (kind, ours), made_by)
    for name, arguments in _arguments_of(kind).items():
        setattr(made, name, on_lightning(arguments))
    return made


def ours_for(kind: type) -> Any:
    """Return our base for another library's class; None if it derives from no HF class that we replace."""
    return next((ours for ours in OURS if issubclass(kind, original_of(ours))), None)


def _arguments_of(kind: Any) -> dict[str, Any]:
    """Return the argument classes among a trainer's attributes, from which it creates default arguments."""
    attributes = {name: value for base in kind.__mro__[::-1] for name, value in vars(base).items()}
    of_hf = original_of(TrainingArguments)
    return {
        name: value
        for name, value in attributes.items()
        if isinstance(value, type) and issubclass(value, of_hf)
    }


_rebased: Callable[[Any], Any] = functools.cache(_make)


def posing_as(
    original: Any, bases: tuple[Any, ...], made_by: tuple[Callable[..., Any], tuple[Any, ...]]
) -> Any:
    """Create a class that only `is` distinguishes from `original`.

    Args:
        original: the class that it represents.
        bases: its base classes.
        made_by: the call that creates it, which its pickle contains.
    """
    described = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    values = {**described, ORIGINAL: original, MADE_BY: made_by}
    return _metaclass(type(original))(original.__name__, bases, values)


def original_of(ours: Any) -> Any:
    """Return HF's class that one of ours replaces, with or without `compat.install()`."""
    return next(
        base for base in ours.__mro__ if base.__name__ == ours.__name__ and not _is_compat(base.__module__)
    )


def _is_compat(module: str) -> bool:
    return module.partition(".")[0] == "compat"


class _SavedAsOriginal:
    """Arguments whose pickle, `training_args.bin`, is one of the original: it is read without `compat`."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        original = vars(type(self)).get(ORIGINAL)
        if original is None:
            return reduced
        # Not with `__newobj__`, for which pickle compares the class with the object's.
        return copyreg._reconstructor, (original, object, None), reduced[2]  # type: ignore[attr-defined]

    def __copy__(self) -> Any:
        return copy._reconstruct(self, None, *super().__reduce_ex__(4))  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy._reconstruct(self, memo, *super().__reduce_ex__(4))  # type: ignore[attr-defined]


def _with_all_names(kind: Any) -> Any:
    """Make a class of arguments accept the names of all releases, and ours."""
    original = vars(kind)[ORIGINAL]
    if not is_generated(next(base for base in original.__mro__ if "__init__" in vars(base))):
        return kind
    own = [name for name in kind.other_names if _hides(kind, name)]
    defaults = {name: getattr(kind, name) for name in own}
    kind = refuses_unknown_names(dataclasses.dataclass(repr=False, eq=original.__dataclass_params__.eq)(kind))
    for name, default in defaults.items():
        setattr(kind, name, OtherName(FIELDS[name], default))
    return kind


def is_generated(kind: Any) -> bool:
    """Whether `dataclasses` generated a class's constructor, which calls no other constructor."""
    code = getattr(inspect.unwrap(vars(kind)["__init__"]), "__code__", None)
    if code is None or not dataclasses.is_dataclass(kind):
        return False
    taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    return code.co_filename == "<string>" and fields <= {*taken}


def _hides(kind: Any, name: str) -> bool:
    """Whether a plain default hides an attribute that must read another name."""
    found = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
    return not isinstance(found, OtherName)


class _OnLightning(type):
    """Metaclass of the classes that represent another one."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or _is_of_original(cls, type(instance))

    def __subclasscheck__(cls, kind: type) -> bool:
        return super().__subclasscheck__(kind) or _is_of_original(cls, kind)


def _is_of_original(cls: Any, kind: type) -> bool:
    # Not with the original's own check: ABCMeta's checks subclasses, and would call this again.
    return ORIGINAL in vars(cls) and type.__subclasscheck__(vars(cls)[ORIGINAL], kind)


def _make_metaclass(kind: Any) -> Any:
    made = type(kind.__name__, (_OnLightning, kind), {})
    copyreg.pickle(made, _as_pickled)
    return made


_metaclass: Callable[[Any], Any] = functools.cache(_make_metaclass)
"""Like the metaclass of an original, ABCMeta for one, whose classes pose as theirs."""


def _as_pickled(kind: Any) -> Any:
    # Its name would refer to the original in a pickle.
    return vars(kind).get(MADE_BY, kind.__qualname__)
