"""HF's Trainer, trained, evaluated and saved by Lightning."""

from __future__ import annotations

from compat.upstream.required import require

require()

from compat.trainer.seq2seq import Seq2SeqTrainer  # noqa: E402
from compat.trainer.trainer import Trainer  # noqa: E402

__all__ = ["Seq2SeqTrainer", "Trainer"]
