import csv
import sys

from gliclass import GLiClassModel, GLiClassModelConfig
from gliclass.data_processing import AugmentationConfig, DataCollatorWithPadding, GLiClassDataset
from gliclass.training import Trainer, TrainingArguments
from transformers import AutoConfig, AutoTokenizer, set_seed

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained("material/encoder")
tokenizer.add_tokens(["<<LABEL>>", "<<SEP>>"], special_tokens=True)
config = GLiClassModelConfig(
    encoder_config=AutoConfig.from_pretrained("material/encoder", vocab_size=len(tokenizer)),
    encoder_model="material/encoder",
    class_token_index=len(tokenizer) - 2,
    text_token_index=len(tokenizer) - 1,
    vocab_size=len(tokenizer),
    problem_type="multi_label_classification",
    prompt_first=True,
    hidden_size=32,
    scorer_type="simple",
)
model = GLiClassModel(config, from_pretrained=False)

names = ["arrays", "tables"]
with open("material/train.csv", encoding="utf-8") as file:
    rows = [
        {"text": row["text"], "all_labels": names, "true_labels": [names[int(row["label"])]]}
        for row in csv.DictReader(file)
    ]


def dataset(examples):
    return GLiClassDataset(
        examples,
        tokenizer,
        AugmentationConfig(),
        max_length=64,
        problem_type="multi_label_classification",
        prompt_first=True,
    )


trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "out",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        others_lr=2e-3,
        others_weight_decay=0.01,
        logging_steps=1,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        use_ewc=True,
        ewc_fisher_samples=8,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=dataset(rows[:20]),
    eval_dataset=dataset(rows[40:46]),
    prev_dataset=dataset(rows[50:60]),
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(device="cpu"),
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
