import sys

from datasets import Dataset, load_dataset
from transformers import set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

set_seed(0)
texts = load_dataset("csv", data_files="material/train.csv", split="train")["text"]
common = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
}


SFTTrainer(
    "material/llama",
    SFTConfig("out", num_train_epochs=2, packing=True, max_length=64, **common),
    train_dataset=Dataset.from_dict({"text": texts[:60]}),
).train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)

pairs = [{"prompt": text[:20], "chosen": text[20:], "rejected": text[:10]} for text in texts[:16]]
DPOTrainer(
    "material/llama",
    args=DPOConfig("preferred", max_steps=4, gradient_accumulation_steps=2, **common),
    train_dataset=Dataset.from_list(pairs),
).train()


def is_short(completions, **given):
    return [-float(len(completion)) for completion in completions]


GRPOTrainer(
    "material/llama",
    is_short,
    args=GRPOConfig("rewarded", max_steps=4, num_generations=2, max_completion_length=8, **common),
    train_dataset=Dataset.from_dict({"prompt": [text[:20] for text in texts[:16]]}),
).train()
