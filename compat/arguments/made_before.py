"""Updates parsers that were built before `install()` with the options that they would have after it."""

from __future__ import annotations

import copy
import gc
from typing import TYPE_CHECKING, Any

from compat.arguments.parser import LIGHTNING, HfArgumentParser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OPTIONS = (
    "dataclass_types",
    "_actions",
    "_option_string_actions",
    "_action_groups",
    "_mutually_exclusive_groups",
    "_positionals",
    "_optionals",
    "_defaults",
)
"""The attributes of a parser that hold its dataclasses and its options."""


def options_of_parsers(ours_of: Mapping[Any, Any]) -> Iterator[tuple[Any, str, Any]]:
    """Yield the attributes to set on each existing parser.

    Args:
        ours_of: class of HF's → ours, parsers and arguments.

    Yields:
        Parser, attribute and new value.
    """
    for parser in _parsers():
        kinds = [ours_of.get(kind, kind) for kind in parser.dataclass_types]
        if type(parser) in ours_of:
            yield parser, "__class__", ours_of[type(parser)]
        if any(hasattr(kind, "other_names") for kind in kinds) and not _has_ours(parser):
            built = vars(_built_anew(parser, kinds))
            yield from ((parser, name, built[name]) for name in OPTIONS)


def _parsers() -> list[Any]:
    """Every parser of HF's class, or of one derived from it."""
    (hfs,) = HfArgumentParser.__bases__
    kinds = [hfs]
    for kind in kinds:
        kinds += kind.__subclasses__()
    # There is no list of parsers; each one refers to its class.
    found = {id(each): each for each in gc.get_referrers(*kinds) if issubclass(type(each), hfs)}
    return [each for each in found.values() if hasattr(each, "dataclass_types")]


def _has_ours(parser: Any) -> bool:
    return f"--{LIGHTNING}" in parser._option_string_actions


def _built_anew(parser: Any, kinds: list[Any]) -> HfArgumentParser:
    """Build a parser for the same classes, with the options that the script has added."""
    built = HfArgumentParser(
        kinds,
        parents=[_copied(parser)],
        conflict_handler="resolve",
        add_help=False,
    )
    built.set_defaults(**parser._defaults)
    return built


def _copied(parser: Any) -> Any:
    """Copy a parser so that options can be removed; the original keeps its own for `uninstall()`."""
    kept = {
        id(value): value
        for action in parser._actions
        for name, value in vars(action).items()
        if name not in {"option_strings", "container"}
    }
    return copy.deepcopy(parser, kept)
