"""PPOTrainer in two processes, each with queries of its own, and DDPOTrainer.

`PPO_LIGHTNING` gives our PPOTrainer flags of Fabric.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import torch

from tests.trl import policies, runs
from tests.trl.setups import ddpo, dpo, iterative, parts, reward, sft


# The first: once processes are a group, transformers 5 saves a model by one of them alone.
def diffusion(library: Any) -> dict[str, Any]:
    """Rewards of all processes, and the losses before the first optimizer step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer, logged = ddpo._trainer(
            library,
            use_lora=True,
            num_epochs=1,
            sample_batch_size=2,
            train_gradient_accumulation_steps=2,
            train_learning_rate=1e-2,
            per_prompt_stat_tracking=True,
            per_prompt_stat_tracking_min_count=2,
        )
        trainer.train()
    (_, rewards), (_, losses), *_ = logged
    if runs.is_ours(library):
        # TRL goes around DDP's wrapper, and so lets each process train alone.
        trained = torch.cat([each.detach().flatten() for each in trainer.trainable_layers])
        one, other = trainer.accelerator.gather(trained[None])
        assert torch.equal(one, other)
    return {"rewards": rewards["reward"], **{name: float(losses[name]) for name in ("loss", "clipfrac")}}


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


def trainers_on_hf(library: Any) -> dict[str, Any]:
    """What the trainers on transformers' Trainer do with the order of samples, windows and references."""
    accumulated = {"num_train_epochs": 2, "gradient_accumulation_steps": 2}
    found = {
        "sft": sft._run(library, accumulated, dataset_text_field="text", packing=True),
        "dpo": dpo._run(library, {"num_train_epochs": 2}, precompute_ref_log_probs=True),
        "reward": reward._run(library, reward._rows(), num_train_epochs=2),
        "iterative": iterative._run(
            library,
            parts.causal(),
            [iterative._tensors(3 * int(os.environ["RANK"])) for _ in range(2)],
            {"gradient_accumulation_steps": 2},
        ),
    }
    return {
        f"{kind}.{name}": value.double().norm().item() if name.startswith("weights") else value
        for kind, outcome in found.items()
        for name, value in outcome.items()
        if not name.startswith("ids")
    }
