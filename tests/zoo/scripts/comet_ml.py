import json
import os
import sys
import zipfile
from pathlib import Path

import comet_ml
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

set_seed(0)
os.environ["COMET_START_ONLINE"] = "0"
os.environ["COMET_OFFLINE_DIRECTORY"] = "comet"
os.environ["COMET_DISABLE_AUTO_LOGGING"] = "0"
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
        report_to="comet_ml",
        use_cpu=True,
        run_name="run",
    ),
    train_dataset=rows["train"].select(range(40)),
    eval_dataset=rows["test"].select(range(8)),
    processing_class=tokenizer,
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
comet_ml.end()

# What the server would show, without times.
clocks = ("duration", "runtime", "per_second")
tracked = []
for path in sorted(Path("comet").glob("*.zip")):
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("messages.json").decode().splitlines()
    payloads = [json.loads(line)["payload"] for line in lines]
    metrics = [payload["metric"] | payload for payload in payloads if "metric" in payload]
    tracked.append(
        [
            [metric["metricName"], metric.get("step"), metric["metricValue"]]
            for metric in metrics
            if not metric["metricName"].startswith("sys.") and not metric["metricName"].endswith(clocks)
        ]
    )
with open("tracked.json", "w", encoding="utf-8") as file:
    json.dump(tracked, file)
