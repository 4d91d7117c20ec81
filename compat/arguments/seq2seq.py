"""`Seq2SeqTrainingArguments`: HF's class, without its side effects on the process."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from compat.arguments.training import TrainingArguments


@dataclass(repr=False)
class Seq2SeqTrainingArguments(TrainingArguments, transformers.Seq2SeqTrainingArguments):  # type: ignore[misc]
    """The arguments of a run that generates: those of `TrainingArguments` and how to generate.

    Mirrors `transformers.Seq2SeqTrainingArguments`; an instance is one. `generation_max_length` counts
    tokens.

    Raises:
        ValueError: HF's own errors for values that contradict each other.
    """

    __doc__ = transformers.Seq2SeqTrainingArguments.__doc__
