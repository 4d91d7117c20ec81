import csv
import json
import sys

from FlagEmbedding.finetune.embedder.encoder_only.base import (
    EncoderOnlyEmbedderDataArguments,
    EncoderOnlyEmbedderModelArguments,
    EncoderOnlyEmbedderRunner,
    EncoderOnlyEmbedderTrainingArguments,
)

with open("material/train.csv", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))[:96]
of = {label: [row["text"] for row in rows if row["label"] == label] for label in "01"}
with open("train.jsonl", "w", encoding="utf-8") as file:
    for query, positive, negative in zip(of["0"][:20], of["0"][20:40], of["1"][:20]):
        file.write(json.dumps({"query": query, "pos": [positive], "neg": [negative]}) + "\n")

common = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": "none",
    "use_cpu": True,
}
EncoderOnlyEmbedderRunner(
    EncoderOnlyEmbedderModelArguments("material/encoder"),
    EncoderOnlyEmbedderDataArguments(train_data=["train.jsonl"], train_group_size=2),
    EncoderOnlyEmbedderTrainingArguments(
        "out", resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None, sub_batch_size=2, **common
    ),
).run()
