"""`Seq2SeqTrainingArguments`: the arguments of a run that generates."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from compat.arguments.setters import refuses_unknown_names
from compat.arguments.training import TrainingArguments


@refuses_unknown_names
@dataclass(repr=False)
class Seq2SeqTrainingArguments(TrainingArguments, transformers.Seq2SeqTrainingArguments):  # type: ignore[misc]
    """The arguments of a run that generates: those of `TrainingArguments` and how to generate.

    Mirrors `transformers.Seq2SeqTrainingArguments`; an instance is one. `generation_max_length` counts
    tokens.

    Raises:
        ArgumentError: as `TrainingArguments`.
    """

    __doc__ = transformers.Seq2SeqTrainingArguments.__doc__
