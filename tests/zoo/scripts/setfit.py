import sys

import numpy as np
from datasets import load_dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from transformers import set_seed

set_seed(0)
rows = load_dataset("csv", data_files={"train": "material/train.csv", "test": "material/validation.csv"})
model = SetFitModel(
    model_body=SentenceTransformer("material/encoder", device="cpu"), model_head=LogisticRegression()
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "out",
        batch_size=4,
        max_steps=6,
        num_epochs=1,
        body_learning_rate=1e-3,
        logging_steps=1,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=None,
        eval_strategy="steps",
        eval_steps=3,
        report_to="none",
    ),
    train_dataset=rows["train"].select(range(16)),
    eval_dataset=rows["test"].select(range(8)),
    metric=lambda predicted, expected: {
        "accuracy": float(np.mean(np.asarray(predicted) == np.asarray(expected)))
    },
)
if sys.argv[1:]:
    body = trainer.st_trainer
    train = body.train
    body.train = lambda: train(resume_from_checkpoint=sys.argv[1])
trainer.train()
print(trainer.evaluate())
