import json
import os
import sys
from pathlib import Path

import wandb
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)


set_seed(0)
os.environ["WANDB_MODE"] = "offline"

tracked, log = [], wandb.Run.log


def noted(run, data, *args, **kwargs):
    # What the server would show, without times.
    clocks = ("runtime", "per_second")
    tracked.append({name: value for name, value in data.items() if not name.endswith(clocks)})
    log(run, data, *args, **kwargs)


wandb.Run.log = noted
tokenizer = AutoTokenizer.from_pretrained("material/tiny-bert")
rows = load_dataset("csv", data_files={"train": "material/train.csv", "test": "material/validation.csv"})
rows = rows.map(lambda row: tokenizer(row["text"]))
trainer = Trainer(
    model=AutoModelForSequenceClassification.from_pretrained("material/tiny-bert"),
    args=TrainingArguments(
        "out",
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        report_to="wandb",
        use_cpu=True,
        run_name="run",
    ),
    train_dataset=rows["train"].select(range(40)),
    eval_dataset=rows["test"].select(range(8)),
    processing_class=tokenizer,
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
config = sorted(wandb.run.config.keys())
wandb.finish()

runs = len(list(Path("wandb").glob("offline-run-*")))
with open("tracked.json", "w", encoding="utf-8") as file:
    json.dump({"history": tracked, "config": config, "runs": runs}, file)
