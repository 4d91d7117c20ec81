"""The script that `compat verify --self` runs: a small language model, with the arguments of HF's Trainer."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed

ROWS, LENGTH, WORDS = 64, 16, 64


def main() -> None:
    """Train, evaluate, predict and save."""
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    set_seed(args.seed)
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        # From shards, HF's Trainer saves tied weights twice, and compat's once.
        tie_word_embeddings=False,
    )
    tokens = torch.randint(WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(GPT2LMHeadModel(config), args, train_dataset=rows, eval_dataset=rows[:10])
    trainer.train()
    trainer.predict(rows[:6])
    trainer.save_model()


if __name__ == "__main__":
    main()
