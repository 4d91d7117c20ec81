"""`compat.Seq2SeqTrainer`: HF's Seq2SeqTrainer on Lightning's engine."""

from __future__ import annotations

import inspect

import transformers

from compat.trainer.legacy.renamed import accept_renamed, takes_tokenizer
from compat.trainer.trainer import Trainer


class Seq2SeqTrainer(Trainer, transformers.Seq2SeqTrainer):  # type: ignore[misc]
    """A `Trainer` whose evaluation can generate.

    Mirrors `transformers.Seq2SeqTrainer`: generation arguments of `evaluate` and `predict`, and
    `predict_with_generate`, are HF's own code.
    """

    @takes_tokenizer(inspect.signature(transformers.Seq2SeqTrainer.__init__))
    def __init__(self, *args: object, **kwargs: object) -> None:
        accept_renamed(kwargs, "tokenizer", "processing_class", f"{type(self).__name__}.__init__")
        super().__init__(*args, **kwargs)
