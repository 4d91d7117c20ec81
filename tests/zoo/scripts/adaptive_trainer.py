import sys

from adaptive_trainer import AdaptiveTrainer
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    TrainingArguments,
    set_seed,
)

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained("material/llama")
rows = load_dataset("csv", data_files="material/train.csv", split="train").select(range(24))
rows = rows.map(lambda row: tokenizer(row["text"]), remove_columns=["text", "label"])
trainer = AdaptiveTrainer(
    model=AutoModelForCausalLM.from_pretrained("material/llama"),
    args=TrainingArguments(
        "out",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=3,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=rows,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    processing_class=tokenizer,
    top_k=5,
    log_metric_steps=2,
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
