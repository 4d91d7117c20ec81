"""Records tests/checkpoint/of_4_37: a checkpoint of transformers 4.37.2.

Runs where transformers 4.37.2, accelerate 0.27.2 and numpy 1.26.4 are installed, with the root of this
repository as the working directory.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import torch
import transformers

TARGET = Path(__file__).parents[1] / "of_4_37"
# The model and its data, without the package around them, which needs a later transformers.
sys.modules["compat"] = transformers
spec = importlib.util.spec_from_file_location("small", Path(__file__).parents[2] / "small.py")
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)

OPTIONS = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_safetensors": False,
    "report_to": [],
    "use_cpu": True,
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "dataloader_pin_memory": False,
}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args = transformers.TrainingArguments("run", **OPTIONS)
    trainer = transformers.Trainer(small.Regression(), args, train_dataset=small.rows(16))
    trainer.train()
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.copytree(Path("run", "checkpoint-2"), TARGET / "checkpoint-2")
    shutil.rmtree("run")


if __name__ == "__main__":
    main()
