"""`Setting`: one decision of a plan, and values as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compat.translate.rules import Kind


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One decision of a plan.

    Attributes:
        field: the HF argument it comes from; empty where the machine decides.
        value: that argument's value.
        kind: how the argument is handled.
        target: the target's name, for example a Lightning Trainer flag. `{}` stands for `becomes`.
        becomes: the target's value.
        note: why.
        changed: whether the argument differs from its default.
    """

    field: str
    value: Any
    kind: Kind
    target: str
    becomes: object
    note: str
    changed: bool

    @property
    def outcome(self) -> str:
        """How the argument is handled, for display."""
        if self.kind is Kind.FLAG:
            return f"Trainer({self.target}={plain(self.becomes)!r})"
        if self.kind is Kind.RETIRED:
            return "nothing"
        return self.target.replace("{}", repr(plain(self.becomes)))

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain data."""
        return {
            "field": self.field,
            "value": plain(self.value),
            "kind": self.kind.value,
            "becomes": self.outcome,
            "why": self.note,
            "changed": self.changed,
        }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One argument that two plans decide differently.

    Attributes:
        field: the argument, or the flag where the machine decides.
        before: the decision of the first plan; None where it has none.
        after: the decision of the second.
    """

    field: str
    before: Setting | None
    after: Setting | None

    def __str__(self) -> str:
        return f"{self.field}: {_told(self.before)} → {_told(self.after)}"


def _told(setting: Setting | None) -> str:
    return "not there" if setting is None else f"{plain(setting.value)!r} ({setting.outcome})"


def scalar(value: Any) -> Any:
    """Return an enum's value, the number in an array of one, and any other value unchanged."""
    value = getattr(value, "value", value)
    return value.item() if getattr(value, "shape", None) == () else value


def plain(value: object) -> Any:
    """Convert `value` for JSON: enums by value, containers by element, live objects by their class."""
    value = scalar(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    fields = getattr(value, "to_dict", None)
    if fields is not None and not isinstance(value, type):
        return plain(fields())
    kind = value if isinstance(value, type) else type(value)
    text = str(value)
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(value, type) or " at 0x" in text else text
