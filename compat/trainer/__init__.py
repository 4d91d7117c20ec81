"""HF's Trainer, trained, evaluated and saved by Lightning."""

from __future__ import annotations

from compat.trainer.facade import Trainer
from compat.trainer.seq2seq import Seq2SeqTrainer

__all__ = ["Seq2SeqTrainer", "Trainer"]
