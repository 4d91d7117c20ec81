"""What a signature in the surface asks for, and what a method of ours takes."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import compat


def parameters(signature: str) -> tuple[set[str], set[str]]:
    """The names in a signature, and those of them that stand for any further ones."""
    arguments = ast.parse(f"def f({signature}): ...").body[0].args
    named = {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]} - {"self"}
    return named, {"**"} if arguments.kwarg else set()


def shown(function: Any) -> inspect.Signature:
    """The signature of a function; a method of our Trainer leads to HF's, and takes more."""
    is_ours = getattr(function, "__module__", None) == compat.Trainer.__module__
    return inspect.signature(function, follow_wrapped=not is_ours)


def accepted(ours: type, method: str) -> tuple[set[str], set[str]]:
    """The names that a method takes; one that passes on whatever it gets takes what the next one takes."""
    named, further = set(), set()
    for function in (vars(base)[method] for base in ours.__mro__ if method in vars(base)):
        is_static = isinstance(function, staticmethod)
        found = list(shown(function.__func__ if is_static else function).parameters.values())
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        named |= {parameter.name for parameter in found[not is_static :] if parameter.kind in by_name}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found):
            break
        further = {"**"}
    return named, further
