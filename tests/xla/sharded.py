"""Trains a language model on XLA devices, on one or sharded by torch_xla, and prints what came of it as JSON.

A process has one client, and SPMD is switched on for all that it does: each way has a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch_xla
import torch_xla.runtime as xr
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import compat
from compat.errors import ArgumentError

SHARDED = {
    "one": None,
    "v1": {"xla": True, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
    "v2": {"xla": True, "xla_fsdp_v2": True, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def trainer_of(folder: Path, way: str, **options: Any) -> compat.Trainer:
    torch.manual_seed(0)
    ids = torch.randint(32, (32, 8))
    data = [{"input_ids": row, "labels": row} for row in ids]
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        vocab_size=32,
        max_position_embeddings=16,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    if SHARDED[way]:
        options |= {"fsdp": True, "fsdp_config": SHARDED[way]}
    arguments = compat.TrainingArguments(
        str(folder),
        report_to="none",
        disable_tqdm=True,
        max_steps=4,
        logging_steps=1,
        per_device_train_batch_size=4,
        optim="adamw_torch",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        **options,
    )
    return compat.Trainer(LlamaForCausalLM(config), arguments, train_dataset=data, eval_dataset=data[:8])


def outcome(folder: Path, trainer: compat.Trainer) -> dict[str, Any]:
    """Losses and gradient norms by step, and the sum of each saved weight by its name."""
    logs = [
        value
        for log in trainer.state.log_history
        for name, value in sorted(log.items())  # a state that is read from a file is sorted
        if name in {"loss", "grad_norm", "eval_loss"}
    ]
    saved = load_file(folder / "checkpoint-4" / "model.safetensors")
    return {"logs": logs, "saved": {name: value.double().sum().item() for name, value in saved.items()}}


def refusal(folder: Path, way: str) -> str:
    """The error about weights that would be loaded into the shards."""
    try:
        trainer_of(folder, way, load_best_model_at_end=True)
    except ArgumentError as error:
        return str(error)
    return ""


def run(way: str, folder: Path) -> dict[str, Any]:
    if way == "v2":
        xr.use_spmd()
    trainer = trainer_of(folder, way)
    trainer.train()
    layout = [torch_xla._XLAC._get_xla_sharding_spec(parameter) for parameter in trainer.model.parameters()]
    found = {**outcome(folder, trainer), "is_spread": all("devices=[" in one for one in layout)}
    found["strategy"] = trainer.plan.strategy
    again = trainer_of(folder, way)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    return {**found, "resumed": outcome(folder, again), "refusal": refusal(folder / "best", way)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print("RESULTS " + json.dumps(run(sys.argv[1], Path(place))))
