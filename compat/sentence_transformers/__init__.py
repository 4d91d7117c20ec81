"""Sentence Transformers on Lightning: its trainers and their arguments, under their own names.

`from compat.sentence_transformers import SentenceTransformerTrainer` is the one line that a script changes.
Every trainer and every class of arguments of the installed release is there, `MultiVectorEncoderTrainer` of
6.2 for one, put on ours by `compat.on_lightning`; any other public name is Sentence Transformers' own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compat.upstream.required import require

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.sparse_encoder import SparseEncoderTrainer, SparseEncoderTrainingArguments

__all__ = [
    "CrossEncoderTrainer",
    "CrossEncoderTrainingArguments",
    "SentenceTransformerTrainer",
    "SentenceTransformerTrainingArguments",
    "SparseEncoderTrainer",
    "SparseEncoderTrainingArguments",
]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    require()
    value = importlib.import_module("compat.sentence_transformers.faces").face(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
