"""`compat.Seq2SeqTrainer`: HF's trainer that generates, on Lightning's engine."""

from __future__ import annotations

import transformers

from compat.trainer.facade import Trainer


class Seq2SeqTrainer(Trainer, transformers.Seq2SeqTrainer):  # type: ignore[misc]
    """A `Trainer` whose evaluation can generate.

    Mirrors `transformers.Seq2SeqTrainer`: generation arguments of `evaluate` and `predict`, and
    `predict_with_generate`, are HF's own code.
    """
