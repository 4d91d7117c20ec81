"""PPOTrainer: steps of every kind, and the parts that users call by themselves."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from tests.trl import policies
from tests.trl.setups import parts


def _steps(
    *, kind: str = "causal", steps: int = 2, masks: bool = False, adam: bool = False, **options: Any
) -> Any:
    def run(library: Any) -> dict[str, Any]:
        trainer = policies.trainer_for(library, kind, adam=adam, **options)
        queries, responses, scores = policies.texts(trainer.tokenizer)
        given = {}
        if masks:
            given["response_masks"] = [torch.arange(len(r)).remainder(3).ne(1).long() for r in responses]
        found: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in range(steps):
                stats = trainer.step(queries, responses, scores, **given)
                found.update(policies.told(step, stats))
        for name, parameter in () if adam else trainer.model.named_parameters():
            found[f"norm/{name}"] = parameter.detach().double().norm().item()
            found[f"grad/{name}"] = None if parameter.grad is None else parameter.grad.double().norm().item()
        return found

    return run


plain = _steps()
by_adam = _steps(adam=True)
accumulated = _steps(mini_batch_size=1, gradient_accumulation_steps=2)
one_batch = _steps(mini_batch_size=4, ppo_epochs=3, gamma=0.9, lam=0.8, cliprange=0.05, cliprange_value=0.05)
absolute = _steps(kl_penalty="abs", adap_kl_ctrl=False, init_kl_coef=0.1)
squared = _steps(kl_penalty="mse", target=0.5, horizon=50)
full = _steps(kl_penalty="full", steps=1)
scaled = _steps(use_score_scaling=True)
normalized = _steps(use_score_scaling=True, use_score_norm=True, score_clip=0.8)
whitened = _steps(whiten_rewards=True, vf_coef=0.5)
masked = _steps(masks=True)
stopped = _steps(early_stopping=True, target_kl=0.001, ppo_epochs=4)
skipped = _steps(ratio_threshold=0.5)
clipped = _steps(max_grad_norm=0.1)
scheduled = _steps(schedule=lambda step: 1 / (1 + step), steps=3)
encoder_decoder = _steps(kind="seq2seq")
low_rank = _steps(kind="lora")


def parts_of_a_step(library: Any) -> dict[str, Any]:
    trainer = policies.trainer_for(library)
    queries, responses, scores = policies.texts(trainer.tokenizer)
    found: dict[str, Any] = {}
    for side in ("right", "left"):
        trainer.tokenizer.padding_side = side
        inputs = trainer.prepare_model_inputs(queries, responses)
        found.update({f"{side}/{name}": value for name, value in inputs.items()})
        with torch.no_grad():
            logprobs, logits, values, masks = trainer.batched_forward_pass(
                trainer.model, queries, responses, inputs, return_logits=True
            )
            rewards, penalties, kls = trainer.compute_rewards(
                torch.stack(scores), logprobs, logprobs + 0.3, masks
            )
        kept, advantages, returns = trainer.compute_advantages(values, rewards, masks)
        losses = trainer.loss(
            logprobs, kept, logits, values + 0.1, logprobs - 0.2, masks, advantages, returns
        )
        found.update(
            {
                f"{side}/logprobs": logprobs * masks,
                # What stands where a text is padded is nobody's, and depends on the kind of attention.
                f"{side}/logits": logits.mean(-1) * masks,
                f"{side}/values": kept,
                f"{side}/masks": masks,
                f"{side}/rewards": rewards * masks,
                f"{side}/penalties": penalties,
                f"{side}/kls": kls,
                f"{side}/advantages": advantages * masks,
                f"{side}/returns": returns * masks,
                f"{side}/policy_loss": losses[0],
                f"{side}/value_loss": losses[1],
            }
        )
    return found


def generation(library: Any) -> dict[str, Any]:
    trainer = policies.trainer_for(library)
    queries, _, _ = policies.texts(trainer.tokenizer)
    options = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    found = {
        "one": trainer.generate(queries[0], **options)[0].tolist(),
        "one_new": trainer.generate(queries[1], return_prompt=False, **options)[0].tolist(),
        "list": [t.tolist() for t in trainer.generate(queries, batch_size=3, **options)],
        "list_new": [t.tolist() for t in trainer.generate(queries, return_prompt=False, **options)],
    }
    response, reference = trainer.generate(queries, generate_ref_response=True, **options)
    found["pair"] = [[t.tolist() for t in response], [t.tolist() for t in reference]]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (it is what the sampler draws from)
    sampler = library("core").LengthSampler(2, 6)
    sampled = trainer.generate(
        queries, length_sampler=sampler, do_sample=True, top_k=0, top_p=1.0, pad_token_id=0, batch_size=2
    )
    found["sampled"] = [t.tolist() for t in sampled]
    return found


def batches(library: Any) -> dict[str, Any]:
    from datasets import Dataset

    rows = Dataset.from_dict(
        {"input_ids": [[i, i + 1] for i in range(11)], "query": [str(i) for i in range(11)], "idle": [0] * 11}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = library("trainer").PPOTrainer(
            config=library("trainer").PPOConfig(batch_size=3, mini_batch_size=3, log_with=None, seed=5),
            model=policies.model_for(library, "causal"),
            tokenizer=parts.tokenizer(),
            dataset=rows,
        )
        torch.manual_seed(11)
        seen = [batch["query"] for _ in range(2) for batch in trainer.dataloader]
    return {"seen": seen, "columns": sorted(trainer.prepare_dataloader(rows).dataset.column_names)}


def accumulated_over_batches(library: Any) -> dict[str, Any]:
    """In the last batch of a dataloader, accelerate ends a window with each micro-batch."""
    from datasets import Dataset

    tokenizer = parts.tokenizer()
    rows = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in policies.QUERIES]})
    trainer = policies.trainer_for(
        library,
        dataset=rows,
        data_collator=lambda batch: [row["input_ids"] for row in batch],
        batch_size=2,
        mini_batch_size=1,
        gradient_accumulation_steps=2,
        schedule=lambda step: 1 / (1 + step),
    )
    _, responses, scores = policies.texts(trainer.tokenizer)
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, queries in enumerate(trainer.dataloader):
            stats = trainer.step([torch.tensor(query) for query in queries], responses[:2], scores[:2])
            found.update(policies.told(step, stats))
    for name, parameter in trainer.model.named_parameters():
        found[f"norm/{name}"] = parameter.detach().double().norm().item()
    return found
