import json
import sys

import mlflow
from datasets import load_dataset
from mlflow import MlflowClient
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

set_seed(0)
mlflow.set_tracking_uri("sqlite:///tracking.db")
mlflow.set_experiment("zoo")
mlflow.transformers.autolog()
mlflow.pytorch.autolog()

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
        report_to="mlflow",
        use_cpu=True,
        run_name="run",
    ),
    train_dataset=rows["train"].select(range(40)),
    eval_dataset=rows["test"].select(range(8)),
    processing_class=tokenizer,
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)

# What the server would show, without names of runs and times.
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("zoo").experiment_id])
clocks = ("_runtime", "_per_second")
histories = [
    {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in sorted(run.data.metrics)
        if not name.endswith(clocks)
    }
    for run in runs
]
params = [dict(sorted(run.data.params.items())) for run in runs]
with open("tracked.json", "w", encoding="utf-8") as file:
    json.dump({"metrics": histories, "params": params, "status": [run.info.status for run in runs]}, file)
