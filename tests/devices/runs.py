"""Trains on the stand-in device with the Trainer of a package, and prints what came of each case as JSON."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.devices import stand_in  # isort: skip (ahead of transformers)

import torch
from torch import nn

from tests.devices.cases import CASES, SCALES

ROWS = 32
UNEQUAL = ("runtime", "per_second", "preparation")
OPTIONS: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "max_steps": 6,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_steps": 3,
    "optim": "adamw_torch",
    "dataloader_pin_memory": False,
}


class Classifier(nn.Module):
    """Draws on the device, by dropout; its loss overflows in fp16 where it is scaled up."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.dropout, self.last = nn.Linear(16, 16), nn.Dropout(0.2), nn.Linear(16, 2)
        self.scale = scale

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        assert inputs.device.type == self.last.weight.device.type == stand_in.KIND
        logits = self.last(self.dropout(self.first(inputs).relu()))
        return {"loss": self.scale * nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def rows() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [{"inputs": torch.randn(16), "labels": torch.tensor(i % 2)} for i in range(ROWS)]


def trainer_of(package: str, folder: Path, scale: float, **options: Any) -> Any:
    module = importlib.import_module(package)
    data = rows()
    arguments = module.TrainingArguments(
        str(folder),
        **{**OPTIONS, **options},
    )
    assert arguments.device.type == stand_in.KIND
    return module.Trainer(
        Classifier(scale), arguments, train_dataset=data, eval_dataset=data[:10], compute_metrics=accuracy
    )


def weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def outcome(trainer: Any) -> dict[str, Any]:
    logs = [
        {name: value for name, value in log.items() if not any(part in name for part in UNEQUAL)}
        for log in trainer.state.log_history
    ]
    return {"logs": logs, "weights": weights(trainer.model)}


def run(package: str, name: str, folder: Path, **options: Any) -> dict[str, Any]:
    scale = SCALES.get(name, 1.0)
    stand_in.GENERATOR.own.manual_seed(0)
    stand_in.COUNTS.clear()
    trainer = trainer_of(package, folder, scale, **CASES[name], **options)
    trainer.train()
    found = {**outcome(trainer), "counts": dict(stand_in.COUNTS)}
    stand_in.COUNTS.clear()
    prediction = trainer.predict(trainer.train_dataset)
    found |= {"counts of evaluation": dict(stand_in.COUNTS), "predicted": prediction.predictions.tolist()}
    again = trainer_of(package, folder, scale, **CASES[name], **options)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return {**found, "resumed": outcome(again)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        names = sys.argv[2:] or CASES
        results = {name: run(sys.argv[1], name, Path(place) / name) for name in names}
    print("RESULTS " + json.dumps(results))
