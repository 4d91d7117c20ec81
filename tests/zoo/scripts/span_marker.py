import csv
import os
import sys

from datasets import Dataset
from span_marker import SpanMarkerModel, Trainer
from transformers import TrainingArguments, set_seed

# The library asks `evaluate` for this metric, which would come from the hub.
METRIC = """
import datasets
import evaluate
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score


class Seqeval(evaluate.Metric):
    def _info(self):
        words = datasets.Sequence(datasets.Value("string"))
        features = datasets.Features({"predictions": words, "references": words})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        found = {
            "overall_precision": precision_score,
            "overall_recall": recall_score,
            "overall_f1": f1_score,
            "overall_accuracy": accuracy_score,
        }
        return {name: float(score(references, predictions)) for name, score in found.items()}
"""
os.makedirs("seqeval", exist_ok=True)
with open("seqeval/seqeval.py", "w", encoding="utf-8") as file:
    file.write(METRIC)

set_seed(0)
with open("material/train.csv", encoding="utf-8") as file:
    texts = [row["text"].split() for row in csv.DictReader(file)]
names = ["O", "THING"]
rows = Dataset.from_list(
    [
        {"tokens": words, "ner_tags": [int(word in ("array", "data", "values", "index")) for word in words]}
        for words in texts
    ]
)
model = SpanMarkerModel.from_pretrained(
    "material/encoder", labels=names, model_max_length=64, entity_max_length=3, marker_max_length=32
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "out",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=rows.select(range(20)),
    eval_dataset=rows.select(range(30, 38)),
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
print(trainer.evaluate())
