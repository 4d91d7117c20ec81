"""`LightningPlan`: what becomes of a set of HF arguments, as frozen data with its provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from compat.translate.rules import Kind


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One decision of a plan.

    Attributes:
        field: the HF argument it comes from.
        value: that argument's value.
        kind: what the argument became.
        target: its name there, a Lightning Trainer flag for instance.
        becomes: the value there.
        note: why.
        changed: whether the argument differs from its default.
    """

    field: str
    value: Any
    kind: Kind
    target: str
    becomes: Any
    note: str
    changed: bool


@dataclass(frozen=True, kw_only=True)
class LightningPlan:
    """A plan: frozen, printable, comparable, and free of live objects."""

    settings: tuple[Setting, ...]

    @property
    def flags(self) -> dict[str, Any]:
        """The arguments of `lightning.pytorch.Trainer` that the plan fixes."""
        return {s.target: s.becomes for s in self.settings if s.kind is Kind.FLAG}

    def changed(self) -> tuple[Setting, ...]:
        """The settings whose HF argument differs from its default."""
        return tuple(setting for setting in self.settings if setting.changed)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data: HF field → what became of it."""
        return {
            s.field: {
                "value": _plain(s.value),
                "kind": s.kind.value,
                "target": s.target,
                "becomes": _plain(s.becomes),
                "note": s.note,
            }
            for s in self.settings
        }

    def to_json(self) -> str:
        """`to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def summary(self) -> str:
        """What became of the changed arguments, a line for each thing that they became."""
        outcomes: dict[str, list[str]] = {}
        for setting in self.changed():
            value = f"{setting.field}={_plain(setting.value)!r}"
            outcomes.setdefault(_outcome(setting), []).append(value)
        width = max(map(len, outcomes), default=0)
        return "\n".join(
            f"  {outcome:<{width}}  ←  {', '.join(fields)}" for outcome, fields in outcomes.items()
        )


def _outcome(setting: Setting) -> str:
    if setting.kind is Kind.FLAG:
        return f"Trainer({setting.target}={_plain(setting.becomes)!r})"
    return f"{setting.kind.value}: {setting.target}" if setting.target else setting.kind.value


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: enums by value, containers by element, the rest as text."""
    value = getattr(value, "value", value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
