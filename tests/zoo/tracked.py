"""The training whose reports to trackers are compared."""

from __future__ import annotations

import sys

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

CLOCKS = ("duration", "runtime", "per_second")
"""Endings of the names of what the clock has measured."""


def train(report_to: str) -> Trainer:
    """Train a classifier of sentences, or go on from the checkpoint that the command line names.

    Args:
        report_to: the tracker.
    """
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained("material/tiny-bert")
    rows = load_dataset("csv", data_files={"train": "material/train.csv", "test": "material/validation.csv"})
    rows = rows.map(lambda row: tokenizer(row["text"]))
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained("material/tiny-bert"),
        args=TrainingArguments(
            "out",
            num_train_epochs=2,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            report_to=report_to,
            use_cpu=True,
            run_name="run",
        ),
        train_dataset=rows["train"].select(range(40)),
        eval_dataset=rows["test"].select(range(8)),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
    return trainer
