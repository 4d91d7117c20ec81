"""Trains with Ray Train in two processes, and goes on where a dead worker has left: `on_ray.py FOLDER`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from compat import Trainer, TrainingArguments


class Dying(TrainerCallback):
    """Ends the second worker in the middle of a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and args.process_index == 1:
            time.sleep(10)  # Ray takes notice of a report only after some seconds
            os._exit(1)


def train(config: dict[str, Any]) -> None:
    """Train in one worker; the model and its data are made up."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=64))
    tokens = torch.randint(0, 64, (24, 8), generator=torch.Generator().manual_seed(1))
    args = TrainingArguments(
        config["folder"],
        use_cpu=True,
        max_steps=6,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in tokens]
    if config["reads_ray"]:
        shard = ray.train.get_dataset_shard("train")
        data = shard.iter_torch_batches(batch_size=2)
    trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[RayTrainReportCallback()])
    trainer = prepare_trainer(trainer)
    checkpoint = ray.train.get_checkpoint()
    if config["dies"] and checkpoint is None:
        trainer.add_callback(Dying())
    with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as folder:
        trainer.train(resume_from_checkpoint=folder and os.path.join(folder, "checkpoint"))
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    found = {"weights": model.state_dict(), "losses": losses, "processes": args.world_size}
    found["resumed"] = checkpoint is not None
    torch.save(found, os.path.join(config["folder"], f"{args.process_index}.pt"))


def main(folder: str, *words: str) -> None:
    """Run the job.

    Args:
        folder: on a disk that all workers share.
        words: `dies` to have a worker die once, `ray` to read one of Ray's datasets.
    """
    ray.init(num_cpus=3, include_dashboard=False)
    folder = os.path.abspath(folder)
    rows = [{"input_ids": [i, i + 1, i + 2], "labels": [i, i + 1, i + 2]} for i in range(24)]
    TorchTrainer(
        train,
        train_loop_config={"folder": folder, "dies": "dies" in words, "reads_ray": "ray" in words},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run", storage_path=f"{folder}/ray", failure_config=FailureConfig(max_failures=1)
        ),
        datasets={"train": ray.data.from_items(rows)} if "ray" in words else None,
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
