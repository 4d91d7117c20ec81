"""Policies, texts and trainers of the PPO set-ups."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from tests.trl.setups import parts

QUERIES = ("the film", "a small boat on a wide", "what a", "I would not")
RESPONSES = (" was a joy", " sea, told", " day! the sun is up", " see it again")
SCORES = (1.0, -0.5, 2.0, 0.25)


def model_for(library: Any, kind: str) -> Any:
    torch.manual_seed(7)
    models = library("models")
    if kind == "seq2seq":
        return models.AutoModelForSeq2SeqLMWithValueHead.from_pretrained(
            str(parts.FOLDER / "seq2seq"), v_head_init_strategy="normal", summary_dropout_prob=0.0
        )
    options = {"v_head_init_strategy": "normal", "summary_dropout_prob": 0.0}
    if kind == "lora":
        from peft import LoraConfig

        adapter = LoraConfig(
            task_type="CAUSAL_LM",
            r=2,
            lora_dropout=0.0,
            init_lora_weights=False,
            target_modules=["c_attn"],
            fan_in_fan_out=True,
        )
        torch.manual_seed(3)
        model = models.AutoModelForCausalLMWithValueHead.from_pretrained(
            str(parts.FOLDER / "causal"), peft_config=adapter, **options
        )
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "lora" in name:
                    drawn = torch.linspace(-0.1, 0.1, parameter.numel())
                    parameter.copy_(drawn.reshape(parameter.shape))
        return model
    return models.AutoModelForCausalLMWithValueHead.from_pretrained(str(parts.FOLDER / "causal"), **options)


def texts(tokenizer: Any, turned_by: int = 0) -> tuple[list[Any], list[Any], list[Any]]:
    queries, responses = (
        [tokenizer(text, return_tensors="pt")["input_ids"][0] for text in texts]
        for texts in (_turned(QUERIES, turned_by), _turned(RESPONSES, turned_by))
    )
    return queries, responses, [torch.tensor(score) for score in SCORES]


def _turned(texts: tuple[str, ...], by: int) -> tuple[str, ...]:
    return texts[by:] + texts[:by]


def trainer_for(
    library: Any,
    kind: str = "causal",
    *,
    schedule: Any = None,
    adam: bool = False,
    frozen: bool = True,
    dataset: Any = None,
    data_collator: Any = None,
    **options: Any,
) -> Any:
    defaults = {
        "batch_size": 4,
        "mini_batch_size": 2,
        "learning_rate": 1e-4,
        "ppo_epochs": 2,
        "log_with": None,
    }
    model = model_for(library, kind)
    if kind != "lora":
        # So that it is not its own reference.
        with torch.no_grad():
            reference = library("models").create_reference_model(model)
            for parameter in model.v_head.parameters():
                parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape))
            for parameter in model.pretrained_model.parameters():
                parameter.mul_(0.9)
    else:
        reference = None
        with torch.no_grad():
            for parameter in model.v_head.parameters():
                parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape))
    extra: dict[str, Any] = {}
    if not adam:
        # Adam would make much of gradients that are zero but for rounding.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        extra["optimizer"] = torch.optim.SGD(trained, lr=0.05, momentum=0.5)
    if schedule is not None:
        extra["lr_scheduler"] = torch.optim.lr_scheduler.LambdaLR(extra["optimizer"], schedule)
    if not frozen:
        # accelerate 0.27 wraps the reference by DDP, which on a CPU wants something to train.
        reference.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library("trainer").PPOTrainer(
            config=library("trainer").PPOConfig(**{**defaults, **options}),
            model=model,
            ref_model=reference,
            tokenizer=parts.tokenizer(),
            dataset=dataset,
            data_collator=data_collator,
            **extra,
        )


def told(step: int, stats: dict[str, Any]) -> dict[str, Any]:
    """The statistics of a step that are equal whenever it is run."""
    return {
        f"{step}/{name}": float(value) if np.ndim(value) == 0 else value
        for name, value in stats.items()
        if not name.startswith("time/")
    }
