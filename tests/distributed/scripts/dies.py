"""A training in which one rank comes to an end of its own: `dies.py FOLDER`, told how by variables.

RANK_THAT_DIES, HOW (one of `WAYS`) and AT, a number of samples. Without the first, the folder's run is resumed, a
run that nothing has disturbed is made beside it, and what both have learnt is written to `weights.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

if os.environ.get("LIBRARY") == "compat":
    from compat import Trainer, TrainingArguments


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_memory():
    raise MemoryError("no memory left for this sample")


def run_out_of_device_memory():
    raise torch.OutOfMemoryError("no memory left on the device")


WAYS = {
    "is killed": kill,
    "has no memory": run_out_of_memory,
    "has no device memory": run_out_of_device_memory,
}


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(2, 1)
        self.drop = torch.nn.Dropout(0.2)

    def forward(self, x, labels=None):
        logits = self.line(self.drop(x))
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}


class Rows(torch.utils.data.Dataset):
    """Rows of which a certain one, counted as they are read, is the last for a certain rank."""

    def __init__(self, rank):
        generator = torch.Generator().manual_seed(3)
        self.x, self.y = torch.randn(64, 2, generator=generator), torch.randn(64, 1, generator=generator)
        self.reads, self.dies = 0, os.environ.get("RANK_THAT_DIES") == str(rank)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.reads += 1
        if self.dies and self.reads == int(os.environ["AT"]):
            WAYS[os.environ["HOW"]]()
        return {"x": self.x[index], "labels": self.y[index]}


def train(folder, resumes, lightning):
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=40,
        save_steps=5,
        learning_rate=0.1,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **lightning,
    )
    torch.manual_seed(0)
    trainer = Trainer(model=Line(), args=args, train_dataset=Rows(args.process_index))
    trainer.train(resume_from_checkpoint=resumes)
    return [p.flatten().tolist() for p in trainer.model.parameters()]


def main(folder, *words):
    lightning = {"lightning": {"devices": 2}} if "devices" in words else {}
    if "RANK_THAT_DIES" in os.environ:
        train(folder / "run", None, lightning)
    else:
        learnt = {"resumed": train(folder / "run", True, lightning)}
        learnt["undisturbed"] = train(folder / "undisturbed", None, lightning)
        (folder / f"weights-{os.environ['RANK']}.json").write_text(json.dumps(learnt))
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
