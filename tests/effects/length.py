"""How long a run is, and how it steps."""

from __future__ import annotations

from typing import Any

import torch

from tests import small
from tests.effects import parts
from tests.effects.effect import Bench, Effect

FOUR_ROWS = {"train_dataset": small.rows(4)}
"""Two batches an epoch."""


def steps(bench: Bench) -> int:
    """Update steps of the whole run."""
    return bench.trained(**FOUR_ROWS).state.global_step


def steps_and_batches(bench: Bench) -> tuple[int, int]:
    """Update steps, and batches that the model has seen."""
    trainer = bench.trained(model=parts.Telling())
    return trainer.state.global_step, len(trainer.model.sizes)


def update_of_first_step(bench: Bench) -> float:
    """How far one step moves the weights."""
    trainer = bench.trainer()
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.train()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return (after - before).norm().item()


def is_clipped_to(limit: float) -> Any:
    """Whether the step with the argument is as long as the limit says, and the other one longer."""
    return lambda without, with_it: without > 2 * limit and abs(with_it - limit) < limit / 1000


PLAIN_SGD = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_steps": 1}

LENGTH = (
    Effect("num_train_epochs", 1.5, steps, (6, 3), base={"max_steps": -1}),
    Effect("max_steps", 5, steps, (6, 5)),
    Effect("gradient_accumulation_steps", 2, steps_and_batches, ((2, 2), (2, 4))),
    Effect("max_grad_norm", 0.01, update_of_first_step, is_clipped_to(0.01), base=PLAIN_SGD),
    Effect(
        "max_grad_norm",
        0.0,
        update_of_first_step,
        lambda without, with_it: abs(without - 0.01) < 0.001 < with_it,
        base={**PLAIN_SGD, "max_grad_norm": 0.01},
        note="off",
    ),
)
