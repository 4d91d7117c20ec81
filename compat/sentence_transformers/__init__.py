"""Sentence Transformers on Lightning: its trainers and their arguments, under the same names.

`from compat.sentence_transformers import SentenceTransformerTrainer` is the only line that a script changes.
Every trainer and every arguments class of the installed release, for example `MultiVectorEncoderTrainer` of
6.2, is adapted by `compat.on_lightning`. All other public names are those of Sentence Transformers.
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
