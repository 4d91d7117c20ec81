"""Trains in two processes that an engine starts on this machine: `on_spark_and_dask.py ENGINE FOLDER`."""

from __future__ import annotations

import os
import socket
import sys


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


def on_spark(folder: str) -> None:
    """Train with Spark's TorchDistributor, which sets the variables of a job itself."""
    from pyspark.ml.torch.distributor import TorchDistributor
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    print(TorchDistributor(num_processes=2, local_mode=True, use_gpu=False).run(train, folder))
    session.stop()


def on_dask(folder: str) -> None:
    """Train in Dask's workers, a process each."""
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        workers, port = list(client.scheduler_info()["workers"]), free_port()
        runs = [
            client.submit(as_process, folder, rank, len(workers), port, workers=[worker], pure=False)
            for rank, worker in enumerate(workers)
        ]
        print(client.gather(runs)[0])


def as_process(folder: str, rank: int, processes: int, port: int) -> list[float]:
    """Train in a worker, which is one process of a job by the variables that torchrun would set."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    told = {**where, **sizes, "RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in told.items()})
    return train(folder)


def free_port() -> int:
    """Find a port that nothing uses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


if __name__ == "__main__":
    {"spark": on_spark, "dask": on_dask}[sys.argv[1]](sys.argv[2])
