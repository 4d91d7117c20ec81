"""`compat explain NAME …`: what becomes of arguments, from the tables alone, so that nothing is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.arguments.checks import nearest
from compat.arguments.fields import FIELDS, Field
from compat.arguments.fsdp_entries import FSDP_CONFIG
from compat.arguments.generations import OLD
from compat.arguments.lightning import FLAGS, Handling
from compat.errors import ArgumentError
from compat.translate.rules import RULES, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADINGS = ("HF argument", "default", "becomes", "why")
KEYS = ("field", "default", "outcome", "note")
"""What JSON calls the columns, as in a plan."""
LIGHTNING, FSDP = "lightning.", "fsdp_config."


def are_names(words: Sequence[str]) -> bool:
    """Whether a command line has names of arguments only: no flag, and no file."""
    return len(words) > 0 and all(_is_name(word) for word in words)


def _is_name(word: str) -> bool:
    return word in FIELDS or word.startswith((LIGHTNING, FSDP))


def rows(names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """What becomes of each argument: its name, its default, what it becomes, and how or why.

    Args:
        names: arguments of any generation, `lightning.FLAG` or `fsdp_config.ENTRY`.

    Raises:
        ArgumentError: there is no such flag or entry.
    """
    return [_row(name) for name in names]


def _row(name: str) -> tuple[str, str, str, str]:
    if name in FIELDS:
        rule = RULES[name]
        becomes = "without effect" if rule.kind is Kind.RETIRED else rule.becomes
        return (name, _default(FIELDS[name]), becomes, f"{rule.note}{_where(name)}")
    prefix = LIGHTNING if name.startswith(LIGHTNING) else FSDP
    table = FLAGS if prefix == LIGHTNING else FSDP_CONFIG
    key = name.removeprefix(prefix)
    if key not in table:
        msg = f"`{name}`: no such argument. {nearest(name, map(prefix.__add__, table))}".rstrip()
        raise ArgumentError(msg)
    if prefix == LIGHTNING:
        flag = FLAGS[key]
        is_said = flag.handling is Handling.SAID
        return (name, "", f"as `{flag.says}`" if is_said else flag.handling.value, flag.note)
    entry = FSDP_CONFIG[key]
    by_strategy = {"version 2": entry.second, "version 1": entry.first, "xla": entry.xla}
    return (name, "", "; ".join(f"{one}: {to or 'nothing'}" for one, to in by_strategy.items()), entry.note)


def _default(field: Field) -> str:
    """The default, with that of each generation where it has changed."""
    if not field.earlier:
        return repr(field.default)
    return ", ".join(f"{field.default_in(one)!r} in {one}" for one in field.generations)


def _where(name: str) -> str:
    """In which generations an old name lives, and what the newest calls it."""
    if not FIELDS[name].is_old:
        return ""
    today = OLD[name].says if name in OLD else ""
    says = f"today `{today}`; " if today not in RULES[name].note else ""
    return f" ({says}of transformers {', '.join(FIELDS[name].generations)})"
