"""One process of a job: trains small models whole and sharded in many ways, and writes what came of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.parity.bench import load_api

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

STEPS = 20
SAVED = 10
BATCH = 6
"""Rows of a step, over all processes."""


def gpt2() -> nn.Module:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 64}
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    # transformers 4 would add to its cache when it computes a layer again.
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "use_cache": False}
    return GPT2LMHeadModel(GPT2Config(**sizes, **quiet, **tokens))


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    return T5ForConditionalGeneration(T5Config(**sizes, **tokens, dropout_rate=0.0))


def bert() -> nn.Module:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    quiet = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return BertForMaskedLM(BertConfig(**sizes, **quiet, vocab_size=64, max_position_embeddings=32))


def llama() -> nn.Module:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = LlamaConfig(**sizes, **tokens, vocab_size=64, max_position_embeddings=32)
    return LlamaForCausalLM(config)


def adapters() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.0, fan_in_fan_out=True)
    return get_peft_model(gpt2(), config)


class Guest(pl.LightningModule):
    """A LightningModule with an optimizer and a schedule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = gpt2()
        # Of its own: weights that are tied are saved for `from_pretrained` alone.
        self.inner.lm_head = torch.nn.Linear(32, 64, bias=False)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.inner(**batch).loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.inner(**batch).loss)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def make(model: Callable[[], nn.Module]) -> Any:
    """A model as it is before training."""
    torch.manual_seed(0)
    return model()


@dataclass(frozen=True)
class Setup:
    """A run.

    Attributes:
        args: arguments beside the common ones.
        like: the run that it must equal; none for one that others are held against.
        model: makes the model; T5 generates when it evaluates.
        loads: saves the model first and trains what `from_pretrained` makes of it with these arguments.
        resume: `name/checkpoint-N` of another run to go on from.
        evaluates_first: whether `evaluate` comes before `train`.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    like: str = ""
    model: Callable[[], nn.Module] = gpt2
    loads: Callable[[], dict[str, Any]] | None = None
    resume: str = ""
    evaluates_first: bool = False


# The best model is the worst one: it is another than the last.
KEEPING = {
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 5,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
}
ACCUMULATING = {"gradient_accumulation_steps": 2}
FSDP = {"fsdp": "full_shard auto_wrap"}
IN_SHARDS = {**FSDP, "fsdp_config": {"min_num_params": 2000, "state_dict_type": "SHARDED_STATE_DICT"}}


def one_by_one(processes: int) -> dict[str, int]:
    """The rows of a step one by one: transformers 4 resumes with the batch size that was saved."""
    return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH // processes}


def spread(**sizes: int) -> Callable[[], dict[str, Any]]:
    """What tells `from_pretrained` of transformers 5 to spread a model."""

    def loads() -> dict[str, Any]:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(**sizes)}

    return loads


WHOLE: Mapping[str, Setup] = MappingProxyType(
    {
        "gpt2": Setup(KEEPING, evaluates_first=True),
        "gpt2-accumulating": Setup(ACCUMULATING),
        "t5": Setup(model=t5),
        "bert": Setup(model=bert),
        "adapters": Setup(model=adapters),
        "llama": Setup(model=llama),
    }
)
FULLY_SHARDED: Mapping[str, Setup] = MappingProxyType(
    {
        "fsdp": Setup({**FSDP, **KEEPING}, like="gpt2"),
        "fsdp-resumed": Setup(FSDP, like="gpt2", resume=f"fsdp/checkpoint-{SAVED}"),
        "fsdp-in-shards": Setup({**IN_SHARDS, **KEEPING, **one_by_one(2)}, like="gpt2", evaluates_first=True),
        "fsdp-in-shards-resumed": Setup(
            {**IN_SHARDS, **one_by_one(2)}, like="gpt2", resume=f"fsdp-in-shards/checkpoint-{SAVED}"
        ),
        "fsdp-accumulating": Setup(
            {
                **ACCUMULATING,
                "fsdp": "shard_grad_op offload auto_wrap",
                "fsdp_config": {"activation_checkpointing": True},
            },
            like="gpt2-accumulating",
        ),
        "fsdp-t5": Setup(FSDP, like="t5", model=t5),
        "fsdp-bert": Setup(FSDP, like="bert", model=bert),
        "fsdp-adapters": Setup(FSDP, like="adapters", model=adapters),
    }
)
BY_THREE: Mapping[str, Setup] = MappingProxyType(
    {
        "fsdp-by-three": Setup(
            {**IN_SHARDS, **one_by_one(3)}, like="gpt2", resume=f"fsdp-in-shards/checkpoint-{SAVED}"
        )
    }
)
# Each process of a group that shares tensors is given the same rows.
SHARING = {"per_device_train_batch_size": BATCH}
TENSORS: Mapping[str, Setup] = MappingProxyType(
    {
        "tp-auto": Setup(SHARING, like="llama", model=llama, loads=lambda: {"tp_plan": "auto"}),
        **(
            {
                "tp-2": Setup(SHARING, like="llama", model=llama, loads=spread(tp_size=2)),
                "fsdp-2": Setup(like="llama", model=llama, loads=spread(fsdp_size=2)),
            }
            if HAS_TRAINING_SEAMS
            else {}
        ),
    }
)


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """Arguments that ask for a stage of DeepSpeed's ZeRO."""
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    how = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    return {"deepspeed": {"zero_optimization": how, **dict.fromkeys(auto, "auto"), **more}}


AUTO = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
WARMUP = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"), "auto")
OF_ITS_OWN = {
    # Its own Adam would be compiled first.
    "optimizer": {"type": "AdamW", "params": {**AUTO, "torch_adam": True}},
    "scheduler": {"type": "WarmupDecayLR", "params": WARMUP},
}
ZERO: Mapping[str, Setup] = MappingProxyType(
    {
        "zero-1": Setup({**zero(1), **ACCUMULATING}, like="gpt2-accumulating"),
        "zero-2": Setup({**zero(2), **KEEPING}, like="gpt2"),
        "zero-2-resumed": Setup(zero(2), like="gpt2", resume=f"zero-2/checkpoint-{SAVED}"),
        "zero-2-of-its-own": Setup({**zero(2, **OF_ITS_OWN), "warmup_steps": 3}),
        "zero-3": Setup({**zero(3), **KEEPING}, like="gpt2"),
        "zero-3-resumed": Setup(zero(3), like="gpt2", resume=f"zero-3/checkpoint-{SAVED}"),
        "zero-3-loaded": Setup({**zero(3), **KEEPING}, like="gpt2", loads=dict),
        # Last: HF's Trainer of transformers 4 trains those after it in this precision, too.
        "zero-2-bf16": Setup({**zero(2, bf16={"enabled": "auto"}), "bf16": True}),
    }
)
EVALUATED_FIRST: Mapping[str, Setup] = MappingProxyType(
    {
        f"zero-{stage}-evaluated-first": Setup(zero(stage), like="gpt2", evaluates_first=True)
        for stage in (2, 3)
    }
)
"""HF's Trainer fails at these."""
ZERO_BY_THREE: Mapping[str, Setup] = MappingProxyType(
    {
        f"zero-{stage}-by-three": Setup(zero(stage), like="gpt2", resume=f"zero-{stage}/checkpoint-{SAVED}")
        for stage in (2, 3)
    }
)
"""DeepSpeed refuses these where nothing puts the parts of a checkpoint together."""
GUESTS: Mapping[str, Setup] = MappingProxyType(
    {
        "guest": Setup(model=Guest),
        # transformers 4 casts what a batch has to half precision where nothing is said of it.
        "zero-2-guest": Setup(
            {**zero(2, fp16={"enabled": "auto"}), "save_strategy": "steps", "save_steps": SAVED},
            like="guest",
            model=Guest,
        ),
        "zero-2-guest-resumed": Setup(
            zero(2, fp16={"enabled": "auto"}),
            like="guest",
            model=Guest,
            resume=f"zero-2-guest/checkpoint-{SAVED}",
        ),
    }
)
"""LightningModules, which HF's Trainer does not take."""

SETUPS: Mapping[str, Setup] = MappingProxyType(
    {
        **WHOLE,
        **FULLY_SHARDED,
        **BY_THREE,
        **TENSORS,
        **ZERO,
        **EVALUATED_FIRST,
        **ZERO_BY_THREE,
        **GUESTS,
    }
)


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of 16 tokens that count up."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(0, 62, (count, 1), generator=generator)
    return [{"input_ids": row, "labels": row} for row in 2 + (starts + torch.arange(16)) % 62]


def loaded(model: Any, folder: Path, options: Mapping[str, Any]) -> Any:
    """What `from_pretrained` makes of a model."""
    if os.environ.get("RANK", "0") == "0":
        model.save_pretrained(folder)
    if dist.is_initialized():
        dist.barrier()
    return type(model).from_pretrained(folder, **options)


def train(name: str, api: Any, runs: Path) -> dict[str, Any]:
    """Train one set-up.

    Args:
        name: of the set-up.
        api: where Trainer and arguments come from.
        runs: the folder of all runs.

    Returns:
        Losses and gradient norms of each step, results of evaluations, and what the trainer was made of.
    """
    setup = SETUPS[name]
    generates = setup.model is t5
    extra = {"predict_with_generate": True, "generation_max_length": 6} if generates else {}
    args = (api.Seq2SeqTrainingArguments if generates else api.TrainingArguments)(
        output_dir=str(runs / name),
        **{
            "use_cpu": True,
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "seed": 3,
            "per_device_train_batch_size": BATCH // int(os.environ.get("WORLD_SIZE", "1")),
            "per_device_eval_batch_size": 4,
            # transformers 4 does not see those of a model with adapters.
            "label_names": ["labels"],
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            **extra,
            **setup.args,
        },
    )
    model = make(setup.model)
    if setup.loads is not None:
        model = loaded(model, runs / name / "initial", setup.loads())
    generated: list[Any] = []

    def keep(prediction: Any) -> dict[str, int]:
        generated.append(prediction.predictions.tolist())
        return {"rows": len(prediction.predictions)}

    trainer = (api.Seq2SeqTrainer if generates else api.Trainer)(
        model=model,
        args=args,
        train_dataset=rows(96),
        eval_dataset=rows(8),
        compute_metrics=keep if generates else None,
    )
    first = trainer.evaluate()["eval_loss"] if setup.evaluates_first else None
    trainer.train(resume_from_checkpoint=str(runs / setup.resume) if setup.resume else None)
    held = sum(local(parameter).numel() for parameter in trainer.model.parameters())
    best = trainer.state.best_model_checkpoint
    found = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry],
        "rates": [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry],
        "evaluations": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "first": first,
        "evaluation": trainer.evaluate()["eval_loss"],
        "generated": generated,
        "kind": trainer.accelerator.distributed_type.value,
        "held": held,
        "best": best and Path(best).name,
    }
    trainer.save_model(str(runs / name / "saved"))
    weights = {key: whole(parameter) for key, parameter in trainer.model.named_parameters()}
    if args.process_index == 0:
        torch.save(weights, runs / name / "weights.pt")
    return found


def local(parameter: Any) -> torch.Tensor:
    """What this process holds of a parameter."""
    kept: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return kept.to_local() if hasattr(kept, "to_local") else kept


def whole(parameter: Any) -> torch.Tensor:
    """All of a parameter; each process has to ask for it."""
    gathered: Any = contextlib.nullcontext()
    if hasattr(parameter, "ds_tensor"):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter])
    with gathered:
        kept = parameter.detach()
        return (kept.full_tensor() if hasattr(kept, "full_tensor") else kept).clone()


def compile_nothing() -> None:
    """Have DeepSpeed do without the operations that it would compile, for half a minute, when it is used."""
    if importlib.util.find_spec("deepspeed"):
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__.clear()


def main(library: str, folder: str, names: list[str]) -> None:
    """Train the set-ups one after the other.

    Args:
        library: `transformers` or `compat`.
        folder: where runs and records go.
        names: the set-ups.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    compile_nothing()
    for name in names:
        found = train(name, load_api(library), Path(folder))
        (Path(folder) / f"{name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
        if dist.is_initialized():
            dist.barrier()
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:3], sys.argv[3:])
