"""HF's arguments: every name of every generation, without side effects on the process.

`fields`, `generations`, `checks` and `lightning` are data and pure functions on plain values; the classes are
imported on first use, so that a plan can be made without transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compat.arguments.seq2seq import Seq2SeqTrainingArguments
    from compat.arguments.training import TrainingArguments

_CLASSES = {
    "Seq2SeqTrainingArguments": "compat.arguments.seq2seq",
    "TrainingArguments": "compat.arguments.training",
}

__all__ = ["Seq2SeqTrainingArguments", "TrainingArguments"]


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_CLASSES[name]), name)
