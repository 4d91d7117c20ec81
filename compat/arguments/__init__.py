"""HF's arguments, with their settings kept to themselves."""

from __future__ import annotations

from compat.arguments.seq2seq import Seq2SeqTrainingArguments
from compat.arguments.training import TrainingArguments

__all__ = ["Seq2SeqTrainingArguments", "TrainingArguments"]
