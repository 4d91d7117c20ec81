"""Runs of `RewardTrainer`."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import datasets

from tests.trl import runs
from tests.trl.setups import parts


def _rows(**columns: Any) -> Any:
    tokenizer = parts.tokenizer()
    sides = {"chosen": runs.TEXTS[:6], "rejected": runs.TEXTS[6:]}
    return datasets.Dataset.from_dict(
        {
            f"{part}_{side}": tokenizer(texts)[part]
            for side, texts in sides.items()
            for part in ("input_ids", "attention_mask")
        }
        | columns
    )


def _run(library: Any, rows: Any, **given: Any) -> dict[str, Any]:
    trainers = library("trainer")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs.seed()
        trainer = trainers.RewardTrainer(
            parts.classifier(),
            trainers.RewardConfig(**runs.options(folder, max_length=32, **given)),
            train_dataset=rows,
            eval_dataset=rows,
            tokenizer=parts.tokenizer(),
        )
        output = trainer.train()
        trainer.evaluate()
        predicted = trainer.predict(rows)
        return {
            **runs.outcome(trainer, output),
            "preferences": predicted.predictions,
            "labels": predicted.label_ids,
            "tags": sorted(trainer.model.model_tags),
        }


def preferences(library: Any) -> dict[str, Any]:
    return _run(library, _rows(), num_train_epochs=2, gradient_accumulation_steps=3)


def margins(library: Any) -> dict[str, Any]:
    return _run(library, _rows(margin=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), max_steps=3)
