"""`LightningPlan`: how a set of HF arguments is handled, as frozen data with its provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from compat.translate.rules import Kind
from compat.translate.setting import Difference, Setting, plain


@dataclass(frozen=True, kw_only=True)
class LightningPlan:
    """A plan: frozen, printable, comparable, and without live objects.

    Attributes:
        settings: every decision, with the argument and the rule that it comes from.
        strategy: name of the strategy: one of `compat.translate.strategy.CLASSES`.
        strategy_options: its options.
        callbacks: names of the HF callbacks that every run has.
    """

    settings: tuple[Setting, ...]
    strategy: str = "single_device"
    strategy_options: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[str, ...] = ()

    @property
    def flags(self) -> dict[str, Any]:
        """The arguments of `lightning.pytorch.Trainer` that the plan fixes."""
        return {s.target: s.becomes for s in self.settings if s.kind is Kind.FLAG}

    @property
    def precision(self) -> str:
        """Lightning's name of the precision."""
        return str(self.flags["precision"])

    @property
    def loggers(self) -> tuple[str, ...]:
        """Names of the integrations that logs go to."""
        return tuple(self._values(Kind.CALLBACK).get("report_to") or ())

    @property
    def checkpointing(self) -> dict[str, Any]:
        """HF argument → value, for all that concerns checkpoints."""
        return self._values(Kind.CHECKPOINT)

    @property
    def data(self) -> dict[str, Any]:
        """HF argument → value, for all that concerns dataloaders."""
        return self._values(Kind.DATA)

    @property
    def module(self) -> dict[str, Any]:
        """HF argument → value, for all that the LightningModule acts on."""
        return self._values(Kind.MODULE)

    def _values(self, kind: Kind) -> dict[str, Any]:
        return {s.field: plain(s.value) for s in self.settings if s.kind is kind}

    def changed(self) -> tuple[Setting, ...]:
        """The settings whose HF argument differs from its default."""
        return tuple(setting for setting in self.settings if setting.changed)

    def diff(self, other: LightningPlan) -> tuple[Difference, ...]:
        """Compare with another plan.

        Args:
            other: the plan to compare with.

        Returns:
            The differences, in the order of this plan.
        """
        mine, theirs = ({s.field or s.target: s for s in plan.settings} for plan in (self, other))
        return tuple(
            Difference(field=name, before=mine.get(name), after=theirs.get(name))
            for name in dict.fromkeys([*mine, *theirs])
            if _essence(mine.get(name)) != _essence(theirs.get(name))
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data: Lightning's settings, and the source of each decision."""
        return {
            "trainer": {name: plain(value) for name, value in self.flags.items()},
            "strategy": {"name": self.strategy, "options": plain(self.strategy_options)},
            "precision": self.precision,
            "loggers": list(self.loggers),
            "callbacks": list(self.callbacks),
            "checkpointing": self.checkpointing,
            "data": self.data,
            "module": self.module,
            "provenance": [setting.to_dict() for setting in self.settings],
        }

    def to_json(self) -> str:
        """`to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_source(self) -> str:
        """Return a Lightning script that trains the same way, without compat and HF's Trainer."""
        from compat.translate.source import source

        return source(self)

    def summary(self) -> str:
        """Summarize how the changed arguments are handled, a line for each result."""
        outcomes: dict[str, list[str]] = {}
        for setting in self.changed():
            value = f"{setting.field}={plain(setting.value)!r}" if setting.field else setting.note
            outcomes.setdefault(_in_short(setting), []).append(value)
        width = max(map(len, outcomes), default=0)
        return "\n".join(
            f"  {outcome:<{width}}  ←  {', '.join(fields)}" for outcome, fields in outcomes.items()
        )


def _essence(setting: Setting | None) -> Any:
    return setting and (plain(setting.value), setting.outcome)


def _in_short(setting: Setting) -> str:
    if setting.kind is Kind.FLAG:
        return setting.outcome
    return ": ".join(filter(None, (setting.kind.value, setting.target.partition("(")[0])))
