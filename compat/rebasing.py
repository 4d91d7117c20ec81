"""`on_lightning()`: one class of somebody else's on our Trainer or our arguments, with nothing patched."""

from __future__ import annotations

import copy
import copyreg
import dataclasses
import functools
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


def on_lightning(kind: Kind) -> Kind:
    """A trainer class, or a class of arguments, of another library, on Lightning.

    The class returned is derived from both: the library's code runs unchanged, and `super()` leads from it to
    ours, where HF's was. It has the name, module, documentation and signature of the original; both are told
    apart by `is` alone, for `isinstance` and `issubclass` hold both ways. Nothing is patched: the original
    goes on running on HF's Trainer. Arguments are saved as the original's.

    Args:
        kind: a class derived from `transformers.Trainer` or `transformers.TrainingArguments`, such as
            `trl.SFTTrainer`; it gives the same result each time, and what is on Lightning already is given
            back as it is.

    Raises:
        RebaseError: a class that is derived from neither.
    """
    if any(issubclass(kind, ours) for ours in OURS):
        return kind
    return cast("Kind", _rebased(kind))


def _make(kind: Any) -> Any:
    ours = next((ours for ours in OURS if issubclass(kind, _hf(ours))), None)
    if ours is None:
        msg = (
            f"`{kind.__module__}.{kind.__qualname__}`: derived neither from transformers.Trainer nor from "
            "transformers.TrainingArguments. If it makes such a trainer inside, call `compat.install()`."
        )
        raise RebaseError(msg)
    if kind is _hf(ours):
        return ours
    made_by = (on_lightning, (kind,))
    if dataclasses.is_dataclass(kind):
        return _with_all_names(posing_as(kind, (_SavedAsOriginal, kind, ours), made_by))
    made = posing_as(kind, (kind, ours), made_by)
    for name, arguments in _arguments_of(kind).items():
        setattr(made, name, on_lightning(arguments))
    return made


def _arguments_of(kind: Any) -> dict[str, Any]:
    """The classes of arguments that a trainer has for attributes, to make some where it is given none."""
    attributes = {name: value for base in kind.__mro__[::-1] for name, value in vars(base).items()}
    of_hf = _hf(TrainingArguments)
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
    values = {**described, "original": original, "made_by": made_by}
    return _metaclass(type(original))(original.__name__, bases, values)


def _hf(ours: Any) -> Any:
    """HF's class that one of ours stands for, whether `compat.install()` is in force or not."""
    return next(
        base for base in ours.__mro__ if base.__name__ == ours.__name__ and not _is_compat(base.__module__)
    )


def _is_compat(module: str) -> bool:
    return module.partition(".")[0] == "compat"


class _SavedAsOriginal:
    """Arguments whose pickle, `training_args.bin`, is one of the original: it is read without `compat`."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        original = vars(type(self)).get("original")
        if original is None:
            return super().__reduce_ex__(protocol)
        # Not as a new object, whose class pickle holds against the one before it.
        return copyreg._reconstructor, (original, object, None), dict(vars(self))  # type: ignore[attr-defined]

    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


def _with_all_names(kind: Any) -> Any:
    """Let a class of arguments take the names of every generation, and ours."""
    if not all(map(is_generated, _constructors(kind.original))):
        return kind
    own = [name for name in kind.other_names if _hides(kind, name)]
    defaults = {name: getattr(kind, name) for name in own}
    kind = refuses_unknown_names(dataclasses.dataclass(repr=False)(kind))
    for name, default in defaults.items():
        setattr(kind, name, OtherName(FIELDS[name], default))
    return kind


def _constructors(kind: Any) -> list[Any]:
    """The constructors between HF's class of arguments and this one."""
    return [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base) and not _is_hf(base)]


def is_generated(constructor: Any) -> bool:
    """Whether dataclasses have made a constructor, which sets its fields, and calls no other one."""
    return bool(constructor.__code__.co_filename == "<string>")


def _is_hf(kind: type) -> bool:
    return kind is object or kind.__module__.partition(".")[0] == "transformers"


def _hides(kind: Any, name: str) -> bool:
    """Whether a plain default stands where the attribute has to look at another name."""
    found = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
    return not isinstance(found, OtherName)


class _OnLightning(type):
    """What is common to the classes that pose as another one."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or isinstance(instance, vars(cls).get("original", ()))

    def __subclasscheck__(cls, kind: type) -> bool:
        return super().__subclasscheck__(kind) or issubclass(kind, vars(cls).get("original", ()))


def _make_metaclass(kind: Any) -> Any:
    made = type(kind.__name__, (_OnLightning, kind), {})
    copyreg.pickle(made, _as_pickled)
    return made


_metaclass: Callable[[Any], Any] = functools.cache(_make_metaclass)
"""Like the metaclass of an original, ABCMeta for one, whose classes pose as theirs."""


def _as_pickled(kind: Any) -> Any:
    # By its name a pickle would find the original.
    return vars(kind).get("made_by", kind.__qualname__)
