"""PPOTrainer in two processes, each with queries of its own. `PPO_LIGHTNING` gives ours flags of Fabric."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import torch

from tests.trl import policies
from tests.trl.setups import parts


def _steps(**options: Any) -> Any:
    def run(library: Any) -> dict[str, Any]:
        flags = json.loads(os.environ.get("PPO_LIGHTNING", "{}"))
        given = {**options, "lightning": flags} if flags else options
        trainer = policies.trainer_for(library, frozen=False, **given)
        rank = trainer.accelerator.process_index
        queries, responses, scores = policies.texts(trainer.tokenizer, turned_by=rank)
        found: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in range(2):
                stats = trainer.step(
                    queries, [r[: len(r) - rank] for r in responses], [s + rank for s in scores]
                )
                found.update(policies.told(step, stats))
        weights = trainer.accelerator.get_state_dict(trainer.model)
        found.update({f"norm/{name}": weight.double().norm().item() for name, weight in weights.items()})
        return found

    return run


plain = _steps()
accumulated = _steps(mini_batch_size=1, gradient_accumulation_steps=2, schedule=lambda step: 1 / (1 + step))
scaled = _steps(use_score_scaling=True, use_score_norm=True)
stopped = _steps(early_stopping=True, target_kl=0.001, ppo_epochs=4)


def batches(library: Any) -> dict[str, Any]:
    from datasets import Dataset

    rows = Dataset.from_dict({"query": [str(number) for number in range(14)]})
    model = policies.model_for(library, "causal")
    trainer = library("trainer").PPOTrainer(
        config=library("trainer").PPOConfig(batch_size=3, mini_batch_size=3, log_with=None, seed=5),
        model=model,
        ref_model=model,
        tokenizer=parts.tokenizer(),
        dataset=rows,
    )
    torch.manual_seed(11)
    return {"seen": [batch["query"] for _ in range(2) for batch in trainer.dataloader]}
