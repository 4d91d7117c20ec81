"""A training of two processes that waits to be told to end: `preempted.py FOLDER`.

Each rank notes its process in `RANK.pid` when update step TELLS has been made, and waits there until the file
`told` lies in the folder. Without TELLS, the folder's run is resumed, a run that nothing has disturbed is made
beside it, and what both have learnt is written to `weights-RANK.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

if os.environ.get("LIBRARY") == "compat":
    from compat import Trainer, TrainingArguments


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(2, 1)
        self.drop = torch.nn.Dropout(0.2)

    def forward(self, x, labels=None):
        logits = self.line(self.drop(x))
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.x, self.y = torch.randn(64, 2, generator=generator), torch.randn(64, 1, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        # Drawn anew each time, from the generator that dropout draws from.
        return {"x": self.x[index] + 0.1 * torch.rand(2), "labels": self.y[index]}


class Wait(TrainerCallback):
    """Waits within an update step, until the test has told the process what it wanted to tell."""

    def __init__(self, folder):
        self.folder = folder

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ["TELLS"]):
            (self.folder / f"{args.process_index}.pid").write_text(str(os.getpid()))
            until = time.monotonic() + 60
            while not (self.folder / "told").exists() and time.monotonic() < until:
                time.sleep(0.02)


def train(folder, resumes, callbacks=(), **options):
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=20,
        save_strategy="epoch",
        learning_rate=0.1,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        dataloader_num_workers=int(os.environ.get("WORKERS", "0")),
        **options,
    )
    torch.manual_seed(0)
    trainer = Trainer(model=Line(), args=args, train_dataset=Rows(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resumes)
    return trainer


def main(folder):
    if "TELLS" in os.environ:
        train(folder / "run", None, [Wait(folder)])
        (folder / "went-on").touch()
    else:
        resumed = train(folder / "run", "auto", lightning={"save_async": True})
        undisturbed = train(folder / "undisturbed", None)
        learnt = {
            name: [
                [p.flatten().tolist() for p in trainer.model.parameters()],
                [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            ]
            for name, trainer in (("resumed", resumed), ("undisturbed", undisturbed))
        }
        limited = train(folder / "limited", None, lightning={"max_time": {"seconds": 0}})
        learnt["limited"] = limited.state.global_step
        (folder / f"weights-{os.environ['RANK']}.json").write_text(json.dumps(learnt))
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
