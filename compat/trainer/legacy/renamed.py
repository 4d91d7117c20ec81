"""Parameters under their names of older releases."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def accept_renamed(values: dict[str, Any], old: str, new: str, where: str) -> None:
    """Replace a keyword argument that has been renamed.

    Args:
        values: the keyword arguments of a call; `old` becomes `new` among them.
        old: the older name; a value of None counts as not passed.
        new: the current name.
        where: the callable, for messages.

    Raises:
        ValueError: both names have a value.
    """
    value = values.pop(old, None)
    if value is None:
        return
    if values.get(new) is not None:
        msg = f"Both `{old}` and `{new}` are set for `{where}`. `{old}` is deprecated: pass `{new}` alone."
        raise ValueError(msg)
    msg = f"`{old}` is deprecated for `{where}`. Use `{new}` instead."
    warnings.warn(msg, FutureWarning, stacklevel=3)
    values[new] = value


def takes_tokenizer(signature: inspect.Signature) -> Callable[[Any], Any]:
    """Give our constructor the signature of HF's, with `tokenizer` at its end.

    Args:
        signature: of HF's constructor of the installed release.
    """
    parameters = list(signature.parameters.values())
    takes_any = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    tokenizer = inspect.Parameter("tokenizer", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters.insert(len(parameters) - takes_any, tokenizer)

    def show(ours: Any) -> Any:
        ours.__signature__ = signature.replace(parameters=parameters)
        return ours

    return show
