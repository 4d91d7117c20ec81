"""DPOTrainer of TRL 0.7 with a reference beside the model, plain and spread as arguments ask for it.

torchrun references.py FILE {"name": {"argument": value}}
"""

import json
import os
import sys
import tempfile
import time
import warnings

import torch

from compat import TrainingArguments
from compat.trl import DPOTrainer
from tests.trl import runs
from tests.trl.setups import dpo, parts


def run(folder, **given):
    runs.seed()
    model, reference = parts.causal(), parts.causal()
    reference.transformer.ln_f.weight.data *= 1.5
    rows = dpo._rows()
    trainer = DPOTrainer(
        model,
        reference,
        args=TrainingArguments(**runs.options(folder, num_train_epochs=2, **given)),
        train_dataset=rows,
        eval_dataset=rows,
        tokenizer=parts.tokenizer(),
        max_length=24,
        max_prompt_length=8,
    )
    output = trainer.train()
    metrics = trainer.evaluate()
    numbers = {name: value for name, value in metrics.items() if "/" in name or name == "eval_loss"}
    return {"training_loss": output.training_loss, "reference": type(trainer.ref_model).__name__, **numbers}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    file, asked = sys.argv[1], json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run(folder, **given) for name, given in {"plain": {}, **asked}.items()}
    if os.environ["RANK"] == "0":
        with open(file, "w", encoding="utf-8") as out:
            json.dump(found, out)
    torch.distributed.barrier()
    time.sleep(0.5)  # gloo's threads may be at work still
