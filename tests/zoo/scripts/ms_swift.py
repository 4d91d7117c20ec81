import csv
import json
import sys

from swift import SftArguments, sft_main

with open("material/train.csv", encoding="utf-8") as file:
    texts = [row["text"] for row in csv.DictReader(file)][:40]
with open("data.jsonl", "w", encoding="utf-8") as file:
    for text in texts:
        messages = [{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text[20:]}]
        file.write(json.dumps({"messages": messages}) + "\n")

sft_main(
    SftArguments(
        model="material/llama",
        model_type="llama",
        template="default",
        dataset=["data.jsonl"],
        split_dataset_ratio=0.2,
        output_dir="out",
        add_version=False,
        num_train_epochs=2,
        max_length=64,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=3,
        eval_steps=3,
        torch_dtype="float32",
        report_to=["none"],
        resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None,
    )
)
