"""Names of metrics: what people and Lightning put before them, and what HF does."""

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
    """The name of a metric without what names the pass: `val_loss` is `loss`."""
    return PREFIXES[prefix].sub("", name)


def named_as(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under HF's names: `val_loss` and `loss` become `eval_loss` where the prefix is `eval`."""
    return {f"{prefix}_{bare(prefix, name)}": value for name, value in metrics.items()}
