import csv
import json
import os
import sys

# Its releases bound accelerate from above.
os.environ["DISABLE_VERSION_CHECK"] = "1"

from llamafactory.train.tuner import run_exp

os.makedirs("data", exist_ok=True)
with open("material/train.csv", encoding="utf-8") as file:
    texts = [row["text"] for row in csv.DictReader(file)][:40]
asked = [{"instruction": text[:20], "input": "", "output": text[20:]} for text in texts]
preferred = [{"instruction": text[:20], "chosen": text[20:], "rejected": text[:9]} for text in texts]
columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
files = {
    "asked.json": asked,
    "preferred.json": preferred,
    "dataset_info.json": {
        "asked": {"file_name": "asked.json"},
        "preferred": {"file_name": "preferred.json", "ranking": True, "columns": columns},
    },
}
for name, content in files.items():
    with open(f"data/{name}", "w", encoding="utf-8") as file:
        json.dump(content, file)

common = {
    "do_train": True,
    "model_name_or_path": "material/llama",
    "dataset_dir": "data",
    "template": "default",
    "finetuning_type": "lora",
    "lora_rank": 4,
    "lora_target": "all",
    "cutoff_len": 64,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": "none",
    "use_cpu": True,
}
run_exp(
    {
        **common,
        "stage": "sft",
        "dataset": "asked",
        "output_dir": "out",
        "num_train_epochs": 2,
        "max_steps": 12,
        "val_size": 0.2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "loraplus_lr_ratio": 4.0,
        "resume_from_checkpoint": sys.argv[1] if sys.argv[1:] else None,
    }
)
run_exp({**common, "stage": "dpo", "dataset": "preferred", "output_dir": "preferred", "max_steps": 4})
