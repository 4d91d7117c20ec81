"""Trains with Spark's TorchDistributor in two processes on this machine: `on_spark.py FOLDER`."""

from __future__ import annotations

import sys

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession


def train(folder: str) -> list[float]:
    """Train in one process; the model and its data are made up. The first one's losses are returned."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from compat import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=64))
    tokens = torch.randint(0, 64, (24, 8), generator=torch.Generator().manual_seed(1))
    args = TrainingArguments(
        folder,
        use_cpu=True,
        max_steps=6,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(model=model, args=args, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {"weights": model.state_dict(), "losses": losses, "processes": args.world_size}
    torch.save(found, f"{folder}/{args.process_index}.pt")
    return losses


if __name__ == "__main__":
    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    distributor = TorchDistributor(num_processes=2, local_mode=True, use_gpu=False)
    print(distributor.run(train, sys.argv[1]))
    session.stop()
