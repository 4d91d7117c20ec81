"""One process of a job: trains small models sharded in many ways, and writes what came of it."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from tests.parity.bench import load_api

if TYPE_CHECKING:
    from collections.abc import Mapping

FULL_SHARD = {"fsdp": "full_shard auto_wrap"}
KEEPING_BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
}
ADAM = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True}
WARMUP = {
    "warmup_min_lr": "auto",
    "warmup_max_lr": "auto",
    "warmup_num_steps": "auto",
    "total_num_steps": "auto",
}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """Arguments that ask for a stage of DeepSpeed's ZeRO."""
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        "deepspeed": {"zero_optimization": {"stage": stage}, **dict.fromkeys(auto, "auto"), **more},
    }


@dataclass(frozen=True)
class Setup:
    """A run.

    Attributes:
        args: arguments beside the common ones.
        seq2seq: whether T5 is trained, and generates when it evaluates; GPT-2 otherwise.
        adapters: whether LoRA adapters alone are trained.
        resume: `name/checkpoint-N` of another run to go on from.
        evaluates_first: whether `evaluate` comes before `train`.
        from_pretrained: name of another run whose saved model is trained on.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    seq2seq: bool = False
    adapters: bool = False
    resume: str = ""
    evaluates_first: bool = False
    from_pretrained: str = ""


SETUPS: dict[str, Setup] = {
    "plain": Setup(),
    "accumulating": Setup({"gradient_accumulation_steps": 2}),
    "seq2seq": Setup(seq2seq=True),
    "adapters": Setup(adapters=True),
    "fsdp": Setup(FULL_SHARD),
    "fsdp-keeping": Setup({**FULL_SHARD, "save_strategy": "steps", "save_steps": 10}),
    "fsdp-resumed": Setup(FULL_SHARD, resume="fsdp-keeping/checkpoint-10"),
    "fsdp-gradients-only": Setup({"fsdp": "shard_grad_op offload auto_wrap"}),
    "fsdp-accumulating": Setup({**FULL_SHARD, "gradient_accumulation_steps": 2}),
    "fsdp-recomputing": Setup({**FULL_SHARD, "fsdp_config": {"activation_checkpointing": True}}),
    "fsdp-by-size": Setup(
        {
            **FULL_SHARD,
            **KEEPING_BEST,
            "fsdp_config": {"min_num_params": 2000, "state_dict_type": "SHARDED_STATE_DICT"},
        }
    ),
    "fsdp-by-size-resumed": Setup(
        {**FULL_SHARD, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}},
        resume="fsdp-by-size/checkpoint-10",
    ),
    "fsdp-evaluated-first": Setup({**FULL_SHARD, **KEEPING_BEST}, evaluates_first=True),
    "fsdp-seq2seq": Setup(FULL_SHARD, seq2seq=True),
    "fsdp-adapters": Setup(FULL_SHARD, adapters=True),
    "zero-1": Setup(zero(1)),
    "zero-2": Setup({**zero(2), "save_strategy": "steps", "save_steps": 10}),
    "zero-2-resumed": Setup(zero(2), resume="zero-2/checkpoint-10"),
    "zero-2-accumulating": Setup({**zero(2), "gradient_accumulation_steps": 2}),
    "zero-2-own-optimizer": Setup(
        {
            **zero(
                2,
                optimizer={"type": "AdamW", "params": ADAM},
                scheduler={"type": "WarmupDecayLR", "params": WARMUP},
            ),
            "warmup_steps": 3,
        }
    ),
    "zero-2-bf16": Setup({**zero(2, bf16={"enabled": "auto"}), "bf16": True}),
    "zero-2-evaluated-first": Setup(zero(2), evaluates_first=True),
    "zero-3": Setup(
        {
            **zero(3),
            **KEEPING_BEST,
        }
    ),
    "zero-3-resumed": Setup(zero(3), resume="zero-3/checkpoint-10"),
    "zero-3-pretrained": Setup(zero(3), from_pretrained="zero-1"),
    "zero-3-evaluated-first": Setup(zero(3), evaluates_first=True),
}

STEPS = 20


def make_model(setup: Setup, runs: Path) -> Any:
    """A small model, or the one that another run has saved."""
    torch.manual_seed(0)
    if setup.from_pretrained:
        return GPT2LMHeadModel.from_pretrained(runs / setup.from_pretrained / "saved")
    if setup.seq2seq:
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
        tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
        return T5ForConditionalGeneration(T5Config(**sizes, **tokens, dropout_rate=0.0))
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **quiet, bos_token_id=0, eos_token_id=1))
    if setup.adapters:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.0))
    return model


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of 16 tokens, of which the labels are the first 5."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 64, (count, 16), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def train(name: str, api: Any, runs: Path, batch_size: int = 2) -> dict[str, Any]:
    """Train one set-up.

    Args:
        name: of the set-up.
        api: where Trainer and arguments come from.
        runs: the folder of all runs.
        batch_size: on each device.

    Returns:
        Losses and gradient norms of each step, results of evaluations, and what the trainer was made of.
    """
    setup = SETUPS[name]
    extra = {"predict_with_generate": True, "generation_max_length": 6} if setup.seq2seq else {}
    args = (api.Seq2SeqTrainingArguments if setup.seq2seq else api.TrainingArguments)(
        output_dir=str(runs / name),
        **{
            "use_cpu": True,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "seed": 3,
            "per_device_train_batch_size": batch_size,
            "per_device_eval_batch_size": 4,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            **extra,
            **setup.args,
        },
    )
    generated = []

    def keep(prediction: Any) -> dict[str, int]:
        generated.append(prediction.predictions.tolist())
        return {"rows": len(prediction.predictions)}

    trainer = (api.Seq2SeqTrainer if setup.seq2seq else api.Trainer)(
        model=make_model(setup, runs),
        args=args,
        train_dataset=rows(96),
        eval_dataset=rows(8),
        compute_metrics=keep if setup.seq2seq else None,
    )
    first = trainer.evaluate()["eval_loss"] if setup.evaluates_first else None
    trainer.train(resume_from_checkpoint=str(runs / setup.resume) if setup.resume else None)
    found = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry],
        "first": first,
        "evaluation": trainer.evaluate()["eval_loss"],
        "generated": generated,
        "kind": trainer.accelerator.distributed_type.value,
        "strategy": type(trainer.lightning.strategy).__name__ if hasattr(trainer, "lightning") else "",
        "held": sum(local(parameter).numel() for parameter in trainer.model.parameters()),
        "best": trainer.state.best_model_checkpoint,
    }
    trainer.save_model(str(runs / name / "saved"))
    return found


def local(parameter: Any) -> torch.Tensor:
    """What this process holds of a parameter."""
    kept: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return kept.to_local() if hasattr(kept, "to_local") else kept


def main(library: str, folder: str, batch_size: str, names: list[str]) -> None:
    """Train the set-ups one after the other.

    Args:
        library: `transformers` or `compat`.
        folder: where runs and records go.
        batch_size: on each device.
        names: the set-ups.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in names:
        found = train(name, load_api(library), Path(folder), int(batch_size))
        (Path(folder) / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(found))
        dist.barrier()
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
