"""Trains on an XLA device with the Trainer of a package, and prints what came of each case as JSON."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_xla.core.xla_model as xm
from safetensors.torch import load_file
from torch import nn
from torch.utils._pytree import tree_flatten
from torch_xla.debug import metrics
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from tests.xla.cases import CASES, Case

ROWS = 32
UNEQUAL = ("runtime", "per_second", "preparation")
COUNTED = {"compilations": "CompileTime", "executions": "ExecuteTime"}


class Classifier(nn.Module):
    """Draws on the device, by dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout, self.last = nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 2)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.last(self.dropout(self.first(inputs).relu()))
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def language_model() -> GPT2LMHeadModel:
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=16)
    return GPT2LMHeadModel(config)


def rows(case: Case) -> list[dict[str, Any]]:
    lengths = [case.lengths[index % len(case.lengths)] for index in range(ROWS)]
    if case.is_language_model:
        return [{"input_ids": torch.randint(32, (length,))} for length in lengths]
    return [
        {"inputs": torch.randn(length), "labels": torch.tensor(i % 2)} for i, length in enumerate(lengths)
    ]


def padded(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = nn.utils.rnn.pad_sequence([row["input_ids"] for row in batch], batch_first=True, padding_value=31)
    return {"input_ids": ids, "labels": ids.masked_fill(ids == 31, -100)}


def accuracy(prediction: Any) -> dict[str, float]:
    found = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(found.mean())}


class Counter(TrainerCallback):
    """Notes how many programs were compiled and executed by the end of each update step."""

    def __init__(self) -> None:
        self.by_step: list[dict[str, int]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.by_step.append(counts())


def counts() -> dict[str, int]:
    found = {name: metrics.metric_data(metric) for name, metric in COUNTED.items()}
    return {name: data[0] if data else 0 for name, data in found.items()}


def trainer_of(package: str, folder: Path, case: Case, seed: int = 0) -> Any:
    module = importlib.import_module(package)
    torch.manual_seed(0)
    # Neither Trainer seeds the device.
    xm.set_rng_state(seed)
    data = rows(case)
    options = {
        "max_steps": 6,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "save_steps": 3,
        "optim": "adamw_torch",
        **case.options,
    }
    arguments = module.TrainingArguments(str(folder), report_to="none", disable_tqdm=True, **options)
    assert arguments.device.type == "xla"
    model = language_model() if case.is_language_model else Classifier()
    return module.Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data[:10],
        data_collator=padded if case.is_language_model else None,
        compute_metrics=accuracy,
        callbacks=[Counter()],
    )


def digest(tree: Any) -> str:
    sha = hashlib.sha256()
    for leaf in tree_flatten(tree)[0]:
        value = leaf.detach().cpu().float().numpy() if isinstance(leaf, torch.Tensor) else leaf
        sha.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return sha.hexdigest()[:16]


def loaded(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return dict(sorted(load_file(file).items()))
    found = torch.load(file, weights_only=False, map_location="cpu")
    return found["xla"] if file.name.startswith("rng") else found


HASHED = (
    "model.safetensors",
    "pytorch_model.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
)


def checkpoints(folder: Path) -> dict[str, str]:
    """Checkpoint and file → a digest of its values."""
    return {
        f"{file.parent.name}/{file.name}": digest(loaded(file))
        for file in sorted(folder.glob("checkpoint-*/*"))
        if file.name in HASHED
    }


def outcome(trainer: Any) -> dict[str, Any]:
    for parameter in trainer.model.parameters():
        assert parameter.device.type == "xla"
    logs = [
        {name: value for name, value in log.items() if not any(part in name for part in UNEQUAL)}
        for log in trainer.state.log_history
    ]
    return {"logs": logs, "weights": digest(trainer.model.state_dict())}


def run(package: str, case: Case, folder: Path) -> dict[str, Any]:
    trainer = trainer_of(package, folder, case)
    metrics.clear_all()
    trainer.train()
    (counter,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, Counter))
    found = {**outcome(trainer), "by_step": counter.by_step, "counts": counts()}
    found["checkpoints"] = checkpoints(folder)
    if case.predicts:
        predicted = trainer.predict(trainer.eval_dataset)
        found["predicted"] = digest([predicted.predictions, predicted.label_ids])
        trainer.evaluate()
        found["counts"] = counts()
    first = min(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    again = trainer_of(package, folder, case, seed=7)
    again.train(resume_from_checkpoint=str(first))
    return {**found, "resumed": {**outcome(again), "checkpoints": checkpoints(folder)}}


if __name__ == "__main__":
    chosen = sys.argv[2:] or list(CASES)
    results = {}
    with tempfile.TemporaryDirectory() as place:
        for name in chosen:
            results[name] = run(sys.argv[1], CASES[name], Path(place) / name)
            gc.collect()
    print("RESULTS " + json.dumps(results))
