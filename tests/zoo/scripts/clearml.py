import json
import os
import sys
import zipfile
from pathlib import Path

from clearml import Task
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

set_seed(0)
os.environ["CLEARML_CACHE_DIR"] = "clearml"
Task.set_offline(True)
# Its search for the script's requirements takes minutes.
Path("requirements.txt").touch()
Task.force_requirements_env_freeze(requirements_file="requirements.txt")
task = Task.init(project_name="zoo", task_name="run", auto_resource_monitoring=False)
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
        report_to="clearml",
        use_cpu=True,
        run_name="run",
    ),
    train_dataset=rows["train"].select(range(40)),
    eval_dataset=rows["test"].select(range(8)),
    processing_class=tokenizer,
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
folder = Path(task.get_offline_mode_folder())
task.close()

# What the server would show, without times.
clocks = ("runtime", "per_second")
with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
    parts = [json.loads(line) for line in archive.read("metrics.jsonl").decode().splitlines()]
    shown = json.loads(archive.read("task.json"))
tracked = [
    [point["metric"], point["variant"], point["iter"], point["value"]]
    for points in parts
    for point in points
    if not point["variant"].endswith(clocks)
]
sections = {section: sorted(values) for section, values in shown["hyperparams"].items()}
with open("tracked.json", "w", encoding="utf-8") as file:
    json.dump({"metrics": tracked, "parameters": sections, "models": shown.get("models")}, file)
