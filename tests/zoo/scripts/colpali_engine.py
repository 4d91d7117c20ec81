import sys

import torch
from colpali_engine.loss import ColbertLoss
from colpali_engine.trainer import ContrastiveTrainer
from datasets import load_dataset
from transformers import AutoModel, AutoTokenizer, BertPreTrainedModel, TrainingArguments, set_seed

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained("material/encoder")
rows = load_dataset("csv", data_files="material/train.csv", split="train")


class LateInteraction(BertPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.encoder = AutoModel.from_config(config)
        self.projection = torch.nn.Linear(config.hidden_size, 16)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        vectors = self.projection(self.encoder(input_ids, attention_mask).last_hidden_state)
        return torch.nn.functional.normalize(vectors, dim=-1) * attention_mask.unsqueeze(-1)


class Collator:
    query_prefix, pos_doc_prefix, neg_doc_prefix = "query_", "doc_", "neg_doc_"

    def __call__(self, examples):
        texts = [example["text"] for example in examples]
        halves = {"query_": [text[:20] for text in texts], "doc_": [text[20:] for text in texts]}
        batch = {}
        for prefix, half in halves.items():
            tokens = tokenizer(
                half, padding="max_length", max_length=32, truncation=True, return_tensors="pt"
            )
            batch |= {prefix + name: tokens[name] for name in ("input_ids", "attention_mask")}
        return batch


trainer = ContrastiveTrainer(
    loss_func=ColbertLoss(),
    is_vision_model=False,
    model=LateInteraction(AutoModel.from_pretrained("material/encoder").config),
    args=TrainingArguments(
        "out",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=rows.select(range(20)),
    eval_dataset=rows.select(range(30, 38)),
    data_collator=Collator(),
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
