import csv
import sys

from gliner import GLiNER, GLiNERConfig
from gliner.data_processing.collator import SpanDataCollator
from gliner.training import Trainer, TrainingArguments
from transformers import AutoConfig, set_seed

set_seed(0)
config = GLiNERConfig(
    model_name="material/encoder",
    encoder_config=AutoConfig.from_pretrained("material/encoder").to_dict(),
    hidden_size=32,
    max_width=4,
    max_len=64,
    dropout=0.1,
    span_mode="markerV0",
)
model = GLiNER.from_config(config)
with open("material/train.csv", encoding="utf-8") as file:
    texts = [row["text"].split() for row in csv.DictReader(file)]
things = {"array": "array", "arrays": "array", "values": "value", "value": "value", "index": "index"}
rows = [
    {
        "tokenized_text": words,
        "ner": [[at, at, things[word]] for at, word in enumerate(words) if word in things],
    }
    for words in texts
]
rows = [row for row in rows if row["ner"]]
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "out",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        others_lr=2e-3,
        logging_steps=1,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=rows[:20],
    eval_dataset=rows[20:26],
    data_collator=SpanDataCollator(model.config, data_processor=model.data_processor, prepare_labels=True),
    processing_class=model.data_processor.transformer_tokenizer,
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
