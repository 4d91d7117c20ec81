"""`compat.Seq2SeqTrainer`: HF's trainer that generates, on Lightning's engine."""

from __future__ import annotations

from typing import Any

import transformers

from compat.trainer.facade import Trainer
from compat.trainer.older import take_older_name, takes_tokenizer


class Seq2SeqTrainer(Trainer, transformers.Seq2SeqTrainer):  # type: ignore[misc]
    """A `Trainer` whose evaluation can generate.

    Mirrors `transformers.Seq2SeqTrainer`: generation arguments of `evaluate` and `predict`, and
    `predict_with_generate`, are HF's own code.
    """

    @takes_tokenizer(transformers.Seq2SeqTrainer.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        take_older_name(kwargs, "tokenizer", "processing_class", f"{type(self).__name__}.__init__")
        super().__init__(*args, **kwargs)
