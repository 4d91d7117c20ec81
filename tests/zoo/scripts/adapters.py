import sys

import adapters
from adapters import AdapterTrainer, AutoAdapterModel, Fuse
from datasets import load_dataset
from transformers import AutoTokenizer, TrainingArguments, set_seed

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained("material/encoder")
rows = load_dataset("csv", data_files={"train": "material/train.csv", "test": "material/validation.csv"})
rows = rows.map(lambda row: tokenizer(row["text"])).rename_column("label", "labels")
common = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": "none",
    "use_cpu": True,
}

model = AutoAdapterModel.from_pretrained("material/encoder")
model.add_classification_head("topic", num_labels=2)
model.add_adapter("topic", config="seq_bn")
model.train_adapter("topic")
trainer = AdapterTrainer(
    model=model,
    args=TrainingArguments(
        "out", num_train_epochs=2, eval_strategy="steps", eval_steps=3, load_best_model_at_end=True, **common
    ),
    train_dataset=rows["train"].select(range(20)),
    eval_dataset=rows["test"].select(range(8)),
    processing_class=tokenizer,
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)

model.add_adapter("other", config="seq_bn")
model.add_adapter_fusion(Fuse("topic", "other"))
model.train_adapter_fusion(Fuse("topic", "other"))
AdapterTrainer(
    model=model,
    args=TrainingArguments("fused", max_steps=4, gradient_accumulation_steps=2, weight_decay=0.1, **common),
    train_dataset=rows["train"].select(range(20)),
    processing_class=tokenizer,
).train()
