"""Statistics of PPO's losses and steps, under the names of TRL 0.7.11.

The quantities are those of Schulman et al., Proximal Policy Optimization Algorithms (2017, arXiv:1707.06347),
and Ziegler et al., Fine-Tuning Language Models from Human Preferences (2019, arXiv:1909.08593).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compat.trl.core import (
    WANDB_PADDING,
    entropy_from_logits,
    flatten_dict,
    masked_mean,
    masked_var,
    stack_dicts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from compat.trl.algorithms.ppo import PolicyLoss, Rollout, ValueLoss


STEP_DATA = (
    "scores",
    "logprobs",
    "ref_logprobs",
    "non_score_reward",
    "train_stats",
    "masks",
    "queries",
    "responses",
    "kls",
)
"""The keyword arguments of `step_statistics`."""


def loss_statistics(
    policy: PolicyLoss,
    value: ValueLoss,
    total: Tensor,
    old: Rollout,
    logprobs: Tensor,
    logits: Tensor,
    vpreds: Tensor,
) -> dict[str, Tensor]:
    """Summarize the losses of one mini batch.

    Args:
        policy: the loss of the policy.
        value: the loss of the values.
        total: the weighted sum of both losses, a scalar.
        old: the mini batch.
        logprobs: log-probabilities, shape (batch size, length).
        logits: shape (batch size, length, vocabulary).
        vpreds: values, shape (batch size, length).

    Returns:
        Name → detached tensor: a scalar, or of shape (batch size, length) for advantages and ratio.
    """

    def mean(tensor: Tensor) -> Tensor:
        averaged: Tensor = masked_mean(tensor, old.mask)
        return averaged

    stats = {
        "loss": {"policy": policy.loss, "value": value.loss, "total": total},
        "policy": {
            "entropy": mean(entropy_from_logits(logits)),
            "approxkl": 0.5 * mean((logprobs - old.logprobs) ** 2),
            "policykl": mean(old.logprobs - logprobs),
            "clipfrac": mean(policy.is_clipped.float()),
            "advantages": old.advantages,
            "advantages_mean": mean(old.advantages),
            "ratio": policy.ratio,
        },
        "returns": {"mean": mean(old.returns), "var": masked_var(old.returns, old.mask)},
        "val": {
            "vpred": mean(vpreds),
            "error": mean(value.errors),
            "clipfrac": mean(value.is_clipped.float()),
            "mean": mean(old.values),
            "var": masked_var(old.values, old.mask),
        },
    }
    return {name: tensor.detach() for name, tensor in flatten_dict(stats).items()}


def stack_minibatches(collected: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the statistics of mini batches.

    Args:
        collected: results of `loss_statistics`.

    Returns:
        Name → shape (mini batches, values); advantages and ratio become one row, which `step_statistics`
        does not average over tokens.
    """
    stacked = stack_dicts(collected)
    advantages = stacked["policy/advantages"].flatten().unsqueeze(0)
    stacked["policy/advantages"] = torch.nan_to_num(advantages, WANDB_PADDING)
    stacked["policy/ratio"] = stacked["policy/ratio"].flatten().unsqueeze(0)
    return stacked


def step_statistics(
    kl_coef: float,
    *,
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    non_score_reward: Tensor,
    train_stats: Mapping[str, Tensor],
    masks: Tensor,
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
    kls: Tensor,
) -> dict[str, Any]:
    """Summarize one step. Tensors of tokens have shape (batch size, length).

    Args:
        kl_coef: the KL coefficient.
        scores: shape (batch size,).
        logprobs: log-probabilities of the policy.
        ref_logprobs: log-probabilities of the reference.
        non_score_reward: KL penalties.
        train_stats: the result of `stack_minibatches`.
        masks: one for response tokens.
        queries: tokens, shape (query length,) each.
        responses: tokens, shape (response length,) each.
        kls: KL estimates.

    Returns:
        Name → number, array or tensor.
    """
    kl_per_response = (kls * masks).sum(dim=-1)
    stats: dict[str, Any] = {
        "objective/kl": kl_per_response.mean(),
        "objective/kl_dist": kl_per_response,
        "objective/logprobs": logprobs,
        "objective/ref_logprobs": ref_logprobs,
        "objective/kl_coef": kl_coef,
        "objective/entropy": (-logprobs * masks).sum(dim=-1).mean(),
        "ppo/mean_non_score_reward": masked_mean(non_score_reward, masks),
        "ppo/mean_scores": scores.mean(),
        "ppo/std_scores": scores.std(),
    }
    for kind, texts in (("queries", queries), ("responses", responses)):
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.float)
        stats[f"tokens/{kind}_len_mean"] = lengths.mean().item()
        stats[f"tokens/{kind}_len_std"] = lengths.std().item()
        stats[f"tokens/{kind}_dist"] = lengths.numpy()
    stats.update({f"ppo/{name}": value.mean(dim=0) for name, value in train_stats.items()})
    stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
    return stats


def reward_statistics(rewards: Tensor) -> dict[str, Any]:
    """Summarize the rewards of all processes, shape (examples,)."""
    return {
        "env/reward_mean": rewards.mean().item(),
        "env/reward_std": rewards.std().item(),
        "env/reward_dist": rewards.cpu().numpy(),
    }
