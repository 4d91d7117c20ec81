import sys

from datasets import load_dataset
from pylate import evaluation, losses, models, utils
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import set_seed

set_seed(0)
rows = load_dataset("csv", data_files="material/train.csv", split="train").select(range(28))
rows = rows.map(
    lambda row: {"query": row["text"][:24], "positive": row["text"][24:], "negative": row["text"][::-1]},
    remove_columns=["text", "label"],
)
model = models.ColBERT(
    "material/encoder", embedding_size=16, document_length=32, query_length=16, device="cpu"
)
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
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
    eval_dataset=rows.select(range(20, 28)),
    loss=losses.Contrastive(model=model),
    evaluator=evaluation.ColBERTTripletEvaluator(
        anchors=rows["query"][20:], positives=rows["positive"][20:], negatives=rows["negative"][20:]
    ),
    data_collator=utils.ColBERTCollator(model.tokenize),
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)
