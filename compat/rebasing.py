"""`on_lightning()`: one class of somebody else's on our Trainer or our arguments, with nothing patched."""

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
"""What takes the place of HF's class of the same name; the most derived come first."""

ORIGINAL, MADE_BY = "_compat_original", "_compat_made_by"
"""Attributes of a class that poses as another one: that one, and the call that makes it."""


def on_lightning(kind: Kind) -> Kind:
    """A trainer class, or a class of arguments, of another library, on Lightning.

    The class returned is derived from both: the library's code runs unchanged, and `super()` leads from it to
    ours, where HF's was. It has the name, module and documentation of the original, a trainer its signature
    (arguments take more); both are told apart by `is` alone, for `isinstance` and `issubclass` hold both
    ways. Nothing is patched: the original goes on running on HF's Trainer. Arguments are saved as the
    original's.

    Args:
        kind: a class derived from `transformers.Trainer` or `transformers.TrainingArguments`, such as
            `trl.SFTTrainer`; it gives the same result each time, and what is on Lightning already is given
            back as it is.

    Raises:
        RebaseError: a class that is derived from neither.
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
    """What a class of somebody else's is put on; None where it stands on nothing of HF's that we have."""
    return next((ours for ours in OURS if issubclass(kind, original_of(ours))), None)


def _arguments_of(kind: Any) -> dict[str, Any]:
    """The classes of arguments that a trainer has for attributes, to make some where it is given none."""
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
    """A class that cannot be told from `original`, but by `is`.

    Args:
        original: the class that it stands for.
        bases: what it is derived from.
        made_by: the call that makes it, which is what a pickle of it holds.
    """
    described = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    values = {**described, ORIGINAL: original, MADE_BY: made_by}
    return _metaclass(type(original))(original.__name__, bases, values)


def original_of(ours: Any) -> Any:
    """HF's class that one of ours stands for, whether `compat.install()` is in force or not."""
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
        # Not as a new object, whose class pickle holds against the one before it.
        return copyreg._reconstructor, (original, object, None), reduced[2]  # type: ignore[attr-defined]

    def __copy__(self) -> Any:
        return copy._reconstruct(self, None, *super().__reduce_ex__(4))  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy._reconstruct(self, memo, *super().__reduce_ex__(4))  # type: ignore[attr-defined]


def _with_all_names(kind: Any) -> Any:
    """Let a class of arguments take the names of every generation, and ours."""
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
    """Whether dataclasses have made a class's constructor, which sets its fields, and calls no other one."""
    code = getattr(inspect.unwrap(vars(kind)["__init__"]), "__code__", None)
    if code is None or not dataclasses.is_dataclass(kind):
        return False
    taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    return code.co_filename == "<string>" and fields <= {*taken}


def _hides(kind: Any, name: str) -> bool:
    """Whether a plain default stands where the attribute has to look at another name."""
    found = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
    return not isinstance(found, OtherName)


class _OnLightning(type):
    """What is common to the classes that pose as another one."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or _is_of_original(cls, type(instance))

    def __subclasscheck__(cls, kind: type) -> bool:
        return super().__subclasscheck__(kind) or _is_of_original(cls, kind)


def _is_of_original(cls: Any, kind: type) -> bool:
    # Not by the original's own check: ABCMeta's asks what is derived from it, and so asks here again.
    return ORIGINAL in vars(cls) and type.__subclasscheck__(vars(cls)[ORIGINAL], kind)


def _make_metaclass(kind: Any) -> Any:
    made = type(kind.__name__, (_OnLightning, kind), {})
    copyreg.pickle(made, _as_pickled)
    return made


_metaclass: Callable[[Any], Any] = functools.cache(_make_metaclass)
"""Like the metaclass of an original, ABCMeta for one, whose classes pose as theirs."""


def _as_pickled(kind: Any) -> Any:
    # By its name a pickle would find the original.
    return vars(kind).get(MADE_BY, kind.__qualname__)
