"""Arguments for whole runs under every release, and what is compared of them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

TEXTS = [
    "the film was a joy",
    "the play was a bore and I would not see it again",
    "a story about a small boat on a wide sea",
    "the soup is warm and good",
    "what a day! the sun is up",
    "I would not pay for it",
    "told with care",
    "the road is long, the bread is fresh",
    "### Human: how is the soup? ### Assistant: warm and good.",
    "### Human: how is the film? ### Assistant: a bore.",
    "the sea is wide",
    "a small boat, a long day",
]

KEPT = ("mlp.c_fc.weight", "ln_f.weight", "wi.weight", "lora_A", "lora_B", "score.weight")
"""Parts of names of weights that are compared."""


def is_ours(library: Any) -> bool:
    return library("core").__name__.startswith("compat")


def seed(value: int = 0) -> None:
    """Let whatever is drawn be drawn again."""
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 (what transformers draws by)
    torch.manual_seed(value)


def options(folder: str, **given: Any) -> dict[str, Any]:
    """Options of training arguments: nothing is saved, and nobody is told."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "learning_rate": 1e-2,
        # Adam makes large steps of gradients that are rounding alone.
        "adam_epsilon": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **given,
    }


def arguments(library: Any, folder: str, **given: Any) -> Any:
    """Training arguments: of transformers for TRL, ours for ours, which know the names of then."""
    if is_ours(library):
        from compat import TrainingArguments
    else:
        from transformers import TrainingArguments
    return TrainingArguments(**options(folder, **given))


def outcome(trainer: Any, output: Any = None) -> dict[str, Any]:
    """What a run leaves: its steps, its mean loss, its evaluations, and some weights.

    Logged losses are left out: transformers 4.37 rounds them.
    """
    history = trainer.state.log_history
    named = ("learning_rate", "eval_loss", "eval_accuracy", "rewards/", "logps/", "logits/")
    logged = sorted({name for entry in history for name in entry if any(part in name for part in named)})
    found = {f"log.{name}": [entry[name] for entry in history if name in entry] for name in logged}
    found |= {"steps": trainer.state.global_step}
    if output is not None:
        found |= {"training_loss": output.training_loss}
    # One of TRL's trainers has the wrapper of several processes for its model.
    weights = [(name.removeprefix("module."), p) for name, p in trainer.model.named_parameters()]
    return found | {f"weights.{n}": p for n, p in weights if any(part in n for part in KEPT)}
