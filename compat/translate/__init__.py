"""From HF arguments to a plan for Lightning: pure data, neither torch nor Lightning is imported here."""

from __future__ import annotations

from compat.translate.plan import LightningPlan
from compat.translate.planner import as_run, plan, strategy_of
from compat.translate.rules import RULES, Kind, Rule
from compat.translate.setting import Setting

__all__ = ["RULES", "Kind", "LightningPlan", "Rule", "Setting", "as_run", "plan", "strategy_of"]
