"""Prefixes of metric names: those of users and Lightning, and HF's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIXES = {
    "eval": re.compile(r"^(?:eval|val|valid|validation)[_/]"),
    "test": re.compile(r"^test[_/]"),
}
"""HF's prefix → the prefixes that name the same pass over the data."""


def bare(prefix: str, name: str) -> str:
    """Return the name of a metric without the prefix of its pass: `val_loss` becomes `loss`."""
    return PREFIXES[prefix].sub("", name)


def named_as(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Rename metrics to HF's names: `val_loss` and `loss` become `eval_loss` if the prefix is `eval`."""
    return {f"{prefix}_{bare(prefix, name)}": value for name, value in metrics.items()}
