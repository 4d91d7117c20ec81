"""The optimizer and its learning rates."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.effects import parts
from tests.effects.effect import Bench, Effect


def option(name: str) -> Any:
    """What the optimizer of the run has as an option, group by group."""

    def observe(bench: Bench) -> list[Any]:
        return [group[name] for group in bench.trained().optimizer.param_groups]

    return observe


def kind(bench: Bench) -> str:
    """The class of the optimizer of the run."""
    optimizer = bench.trained().optimizer
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


def rates(bench: Bench) -> Any:
    """The learning rate of each step."""
    seen: list[float] = []
    holder: list[Any] = []
    note = parts.At("on_step_begin", lambda *_: seen.append(holder[0].optimizer.param_groups[0]["lr"]))
    holder.append(bench.trainer(callbacks=[note]))
    holder[0].train()
    return pytest.approx(seen, abs=1e-6)


class Galore(torch.optim.SGD):
    """Stands for an optimizer that takes some parameters apart."""

    def __init__(self, params: Any, lr: float, **ignored: Any) -> None:
        super().__init__(params, lr=lr)


def galore(bench: Bench) -> Any:
    """How many parameters an optimizer with low-rank projections is given apart, and their rank."""
    library = ModuleType("galore_torch")
    library.GaLoreAdamW = library.GaLoreAdamW8bit = library.GaLoreAdafactor = Galore
    bench.patch.setitem(sys.modules, "galore_torch", library)
    for module in ("transformers.trainer", "transformers.trainer_optimizer"):
        if hasattr(sys.modules.get(module), "is_galore_torch_available"):
            bench.patch.setattr(f"{module}.is_galore_torch_available", lambda: True)
    trainer = bench.trained()
    return [
        (len(group["params"]), group["rank"]) for group in trainer.optimizer.param_groups if "rank" in group
    ]


LOW_RANK = {"optim": "galore_adamw", "optim_target_modules": ["hidden"]}
RISING = {"max_steps": 4, "learning_rate": 1.0}

OPTIMIZER = (
    Effect("optim", "sgd", kind, ("AdamW", "SGD")),
    Effect("adafactor", True, kind, ("AdamW", "Adafactor"), replaced_by="optim", warns=True),
    Effect("adam_beta1", 0.7, option("betas"), ([(0.9, 0.999)] * 2, [(0.7, 0.999)] * 2)),
    Effect("adam_beta2", 0.7, option("betas"), ([(0.9, 0.999)] * 2, [(0.9, 0.7)] * 2)),
    Effect("adam_epsilon", 0.1, option("eps"), ([1e-8] * 2, [0.1] * 2)),
    Effect("weight_decay", 0.1, option("weight_decay"), ([0.0, 0.0], [0.1, 0.0])),
    Effect("optim_args", "rank=2", galore, ([(1, 128)], [(1, 2)]), base=LOW_RANK),
    Effect("optim_target_modules", "all-linear", galore, ([(1, 128)], [(2, 128)]), base=LOW_RANK),
    Effect(
        "learning_rate",
        0.5,
        rates,
        ([5e-5, 5e-5], [0.5, 0.5]),
        base={"lr_scheduler_type": "constant"},
    ),
    Effect("lr_scheduler_type", "constant", rates, ([1, 0.75, 0.5, 0.25], [1, 1, 1, 1]), base=RISING),
    Effect(
        "lr_scheduler_kwargs",
        {"power": 2.0},
        rates,
        ([1, 0.75, 0.5, 0.25], [1, 0.75**2, 0.5**2, 0.25**2]),
        base={**RISING, "lr_scheduler_type": "polynomial"},
    ),
    Effect("warmup_steps", 2, rates, ([1, 0.75, 0.5, 0.25], [0, 0.5, 1, 0.5]), base=RISING),
    Effect(
        "warmup_steps", 0.5, rates, ([1, 0.75, 0.5, 0.25], [0, 0.5, 1, 0.5]), base=RISING, note="fraction"
    ),
    Effect(
        "warmup_ratio",
        0.5,
        rates,
        ([1, 0.75, 0.5, 0.25], [0, 0.5, 1, 0.5]),
        base=RISING,
        replaced_by="warmup_steps",
        warns=True,
    ),
)
