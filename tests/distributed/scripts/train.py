"""A script as users write them; prints what its process knows and what it has learnt."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

if os.environ.get("LIBRARY") == "compat":
    from compat import HfArgumentParser, Trainer, TrainingArguments


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(2, 1)

    def forward(self, x, labels=None):
        logits = self.line(x)
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}


def rows(count):
    generator = torch.Generator().manual_seed(3)
    return [
        {"x": torch.randn(2, generator=generator), "labels": torch.randn(1, generator=generator)}
        for _ in range(count)
    ]


def whole(parameter):
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def main():
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    before = (args.world_size, args.process_index, args.local_process_index, str(args.parallel_mode))
    torch.manual_seed(0)
    trainer = Trainer(model=Line(), args=args, train_dataset=rows(24), eval_dataset=rows(7))
    if os.environ.get("EVALUATES_FIRST"):
        trainer.evaluate()
    with args.main_process_first():
        pass
    trainer.train()
    is_sharded = any(hasattr(p, "full_tensor") for p in trainer.model.parameters())
    predictions = trainer.predict(rows(7)).predictions
    found = {
        "before": before,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "weights": [whole(p).flatten().tolist() for p in trainer.model.parameters()],
        "is_sharded": is_sharded,
        "predictions": predictions.tolist(),
        "engine": type(trainer).__module__,
        "precision": trainer.accelerator.mixed_precision,
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank-{args.process_index}.json").write_text(json.dumps(found))
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
