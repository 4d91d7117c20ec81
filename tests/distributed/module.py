"""`HFModule` and `HFDataModule` in a plain Lightning Trainer of two processes, beside HF's own Trainer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import transformers

import compat
from tests.parity.parts import data, models
from tests.parity.record import isolated
from tests.parity.test_module import Noting, arguments, lightning, weights

if TYPE_CHECKING:
    from pathlib import Path


def compared(folder: Path) -> dict[str, Any]:
    """Train the same language model under both, with a padded last batch and short windows.

    Args:
        folder: where runs go.

    Returns:
        Weights and evaluations, HF's first.
    """
    options = {
        "gradient_accumulation_steps": 3,
        "eval_strategy": "epoch",
        "average_tokens_across_devices": True,
    }
    train, valid = data.text(), data.text(11, seed=1)
    torch.manual_seed(3)
    theirs = models.gpt2()
    ours = copy.deepcopy(theirs)
    with isolated(forgiving=True):
        args = arguments(folder / "hf", transformers.TrainingArguments, **options)
        hf = transformers.Trainer(
            theirs, args, train_dataset=train, eval_dataset=valid, data_collator=data.pad
        )
        hf.train()
    with isolated(forgiving=False):
        args, noting = arguments(folder / "ours", **options), Noting()
        trainer = lightning(args, strategy="ddp", callbacks=[noting])
        loaders = compat.HFDataModule(args, train, valid, data_collator=data.pad)
        trainer.fit(compat.HFModule(ours, args), datamodule=loaders)
    return {
        "weights": [weights(theirs), weights(ours)],
        "losses": [
            [entry["eval_loss"] for entry in hf.state.log_history if "eval_loss" in entry],
            [entry["eval_loss"] for entry in noting.seen],
        ],
    }
