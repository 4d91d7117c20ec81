"""A script in which the process of one rank takes its time when training ends: `late.py FOLDER RANK`."""

from __future__ import annotations

import sys
import time

import torch
from train import Line, rows
from transformers import TrainerCallback

from compat import Trainer, TrainingArguments

SECONDS = 3.0


class Late(TrainerCallback):
    def on_train_end(self, args, state, control, **_):
        if args.process_index == int(sys.argv[2]):
            time.sleep(SECONDS)


options = {"use_cpu": True, "max_steps": 4, "report_to": "none", "disable_tqdm": True}
torch.manual_seed(0)
args = TrainingArguments(sys.argv[1], **options)
Trainer(Line(), args, train_dataset=rows(24), callbacks=[Late()]).train()
# As in `train.py`, of threads of gloo's.
time.sleep(0.5)
