"""One process of a job: goes on under FSDP from converted checkpoints, and has Lightning write one in shards.

Run by torchrun with a folder that has `gpt2/checkpoint-2` and `lora/checkpoint-2` in shards.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import state_dict as whole_state
from torch.distributed.fsdp import fully_shard

from tests.checkpoint.convert import made
from tests.checkpoint.convert.modules import Loader, Module
from tests.distributed import sharded

MODELS = ("gpt2", "lora")


class Sharded(Module):
    """Spreads its model over processes."""

    def configure_model(self) -> None:
        fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


def keep(model: Any, optimizer: Any, path: Path) -> None:
    """Write whole weights, and the whole state of the optimizer."""
    options = whole_state.StateDictOptions(full_state_dict=True)
    states = (
        whole_state.get_model_state_dict(model, options=options),
        whole_state.get_optimizer_state_dict(model, optimizer, options=options),
    )
    if dist.get_rank() == 0:
        torch.save(states, path)


def go_on(folder: Path, name: str) -> None:
    """Train from a converted checkpoint, and save in shards."""
    how = {**sharded.IN_SHARDS, **made.ONE_BY_ONE, "max_steps": 6}
    trainer = made.trainer("compat", folder / name, name, **how)
    trainer.train(resume_from_checkpoint=str(folder / name / "checkpoint-2"))
    weights = {key: sharded.whole(parameter) for key, parameter in trainer.model.named_parameters()}
    if dist.get_rank() == 0:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        torch.save((losses, weights), folder / name / "end.pt")


def lightning(folder: Path) -> None:
    """Train by Lightning alone, and save in shards."""
    module = Sharded(sharded.make(made.MODELS["gpt2"]).train())
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, Loader(sharded.rows(16), batch_size=1))
    trainer.save_checkpoint(folder / "shards.ckpt")
    keep(module, trainer.optimizers[0], folder / "shards.pt")


def main(folder: Path) -> None:
    """Run all of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in MODELS:
        go_on(folder, name)
    lightning(folder)
    dist.barrier()
    # As in tests/distributed/sharded.py.
    time.sleep(0.5)


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == "2"
    main(Path(sys.argv[1]))
