"""Trains with four batches in a step, whatever the number of processes, under HF and under compat: `forms.py FOLDER`.

Each process writes down which samples its model has seen in which step, and what came of it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch
import transformers

import compat

BATCHES_IN_A_STEP = 4


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(2, 1)
        self.seen = []

    def forward(self, x, index, labels):
        self.seen.append(index.tolist())
        logits = self.line(x)
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}


def rows(count):
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "x": torch.randn(2, generator=generator),
            "labels": torch.randn(1, generator=generator),
            "index": i,
        }
        for i in range(count)
    ]


def train(library, folder):
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = BATCHES_IN_A_STEP // processes
    args = library.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        learning_rate=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    model = Line()
    trainer = library.Trainer(model=model, args=args, train_dataset=rows(60))
    trainer.train()
    windows = range(0, len(model.seen), accumulation)
    return {
        "steps": [sum(model.seen[at : at + accumulation], []) for at in windows],  # noqa: RUF017
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "gradients": [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry],
        "weights": [p.flatten().tolist() for p in trainer.model.parameters()],
    }


def write(folder):
    found = {name: train(library, folder) for name, library in (("theirs", transformers), ("ours", compat))}
    rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    (folder / f"{processes}-{rank}.json").write_text(json.dumps(found))
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


def run(work, processes):
    """Run a job of so many processes; they are forked, since most of a small job is its imports."""
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            if processes > 1:
                os.environ.update(job, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(processes))
            status = 1
            try:
                work()
                status = 0
            except BaseException:  # noqa: BLE001 (a forked process must not go on in its parent's place)
                traceback.print_exc()
            os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    # Imported once, ahead of the forks.
    assert transformers.Trainer, compat.Trainer
    torch.set_num_threads(1)
    work = partial(write, Path(sys.argv[1]))
    sys.exit(any(status for processes in (1, 2, 4) for status in run(work, processes)))
