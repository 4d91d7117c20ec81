"""Steps of `IterativeSFTTrainer`."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import datasets
import torch

from tests.trl import runs
from tests.trl.setups import parts


def _run(
    library: Any, model: Any, steps: list[dict[str, Any]], given: dict[str, Any], **options: Any
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs.seed()
        trainer = library("trainer").IterativeSFTTrainer(
            model, runs.arguments(library, folder, **{"max_steps": 8, **given}), parts.tokenizer(), **options
        )
        for step in steps:
            trainer.step(**step)
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        return {
            **runs.outcome(trainer),
            "rates": [entry["learning_rate"] for entry in logged],
            "logged_at": [entry["step"] for entry in logged],
            # rounded to four digits, and the last one may fall on either side
            "losses": [round(entry["loss"], 2) for entry in logged],
            "names": sorted({name for entry in logged for name in entry}),
            "truncation_side": trainer.tokenizer.truncation_side,
            "gradients": sum(float(p.grad.abs().sum()) for p in model.parameters()),
        }


def _tensors(first: int) -> dict[str, Any]:
    tokenizer = parts.tokenizer()
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in runs.TEXTS[first : first + 5]]
    return {"input_ids": ids, "attention_mask": [torch.ones_like(one) for one in ids], "labels": ids}


def texts(library: Any) -> dict[str, Any]:
    steps = [{"texts": runs.TEXTS[:5]}, {"texts": runs.TEXTS[5:9], "texts_labels": runs.TEXTS[5:9]}]
    return _run(library, parts.causal(), steps, {"logging_steps": 2}, max_length=10)


def tensors_in_windows(library: Any) -> dict[str, Any]:
    given = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    return _run(library, parts.causal(), [_tensors(0), _tensors(5)], given)


def evaluated(library: Any) -> dict[str, Any]:
    tokenizer = parts.tokenizer()
    rows = datasets.Dataset.from_dict(
        {"input_ids": [tokenizer(text)["input_ids"] for text in runs.TEXTS[:4]]}
    )
    given = {"evaluation_strategy": "steps", "eval_steps": 2}
    return _run(
        library, parts.causal(), [_tensors(0)], given, eval_dataset=rows, truncation_mode="keep_start"
    )


def encoder_decoder(library: Any) -> dict[str, Any]:
    steps = [_tensors(2), {"texts": runs.TEXTS[:3], "texts_labels": runs.TEXTS[3:6]}]
    return _run(library, parts.seq2seq(), steps, {})


def own_optimizer(library: Any) -> dict[str, Any]:
    model = parts.causal()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    return _run(library, model, [_tensors(0)], {"max_steps": -1}, optimizers=(optimizer, scheduler))
