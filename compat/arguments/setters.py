"""The constructor and the `set_*` methods of `TrainingArguments`: which parameters they take."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from compat.arguments.checks import nearest
from compat.arguments.fields import shown_of_unknown
from compat.errors import UnknownArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

PARAMETERS: dict[str, dict[str, str]] = {
    "set_training": {
        "gradient_checkpointing": "gradient_checkpointing",
        "activation_checkpointing": "activation_checkpointing",
    },
    "set_evaluate": {"jit_mode": "jit_mode_eval"},
    "set_testing": {"jit_mode": "jit_mode_eval"},
    "set_lr_scheduler": {"warmup_ratio": "warmup_ratio"},
    "set_dataloader": {
        "prefetch_factor": "dataloader_prefetch_factor",
        "multiprocessing_context": "dataloader_multiprocessing_context",
        "in_order": "dataloader_in_order",
    },
    "set_push_to_hub": {"revision": "hub_revision"},
}
"""Method → a parameter that some release lacks → the argument that it sets."""

Kind = TypeVar("Kind", bound=type[Any])


def with_all_parameters(kind: Kind) -> Kind:
    """Make a class's `set_*` methods accept the parameters of every generation."""
    for name, parameters in PARAMETERS.items():
        method = getattr(kind, name)
        known = inspect.signature(method).parameters
        missing = {parameter: field for parameter, field in parameters.items() if parameter not in known}
        if missing:
            setattr(kind, name, _accepting(method, missing))
    return kind


def _accepting(method: Callable[..., Any], missing: dict[str, str]) -> Callable[..., Any]:
    @functools.wraps(method)
    def accepting(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {field: kwargs.pop(name) for name, field in missing.items() if name in kwargs}
        returned = method(self, *args, **kwargs)
        for field, value in given.items():
            setattr(self, field, value)
        return returned

    signature = inspect.signature(method)
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in missing]
    accepting.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *extra]
    )
    return accepting


def refuses_unknown_names(kind: Kind) -> Kind:
    """Make a class's constructor suggest the nearest existing name for an unknown one.

    Not by `__new__`: a class that is put on this one for a while, and taken off again, could not be called
    any more.
    """
    # Not the attribute of the class, which type checkers take for one that may differ in a subclass.
    constructor = vars(kind)["__init__"]
    known = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 (takes its place)
        if unknown := [name for name in kwargs if name not in known]:
            msg = "\n".join(
                f"`{shown_of_unknown(name, kwargs[name])}`: {kind.__name__} has no such argument. "
                f"{nearest(name, known) or 'Remove it.'}"
                for name in unknown
            )
            raise UnknownArgumentError(msg)
        constructor(self, *args, **kwargs)

    kind.__init__ = __init__  # type: ignore[misc]
    return kind
