"""Small tensors, with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from compat.trl.algorithms import ppo, ppo_statistics
from compat.trl.algorithms.ppo import Rollout

OLD = Rollout(
    logprobs=torch.tensor([[-1.0, -2.0, 5.0]]),
    values=torch.tensor([[1.0, 3.0, 5.0]]),
    mask=torch.tensor([[1, 1, 0]]),
    advantages=torch.tensor([[2.0, 4.0, 5.0]]),
    returns=torch.tensor([[1.0, 2.0, 5.0]]),
)


def statistics():
    logprobs, vpreds = torch.tensor([[-1.5, -1.0, 0.0]]), torch.tensor([[2.0, 2.0, 0.0]])
    policy, value = ppo.policy_loss(logprobs, OLD, 0.2), ppo.value_loss(vpreds, OLD, 9.0)
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    return ppo_statistics.loss_statistics(
        policy, value, policy.loss + value.loss, OLD, logprobs, logits, vpreds
    )


def test_losses_of_a_mini_batch():
    stats = statistics()
    assert not any(tensor.requires_grad for tensor in stats.values())
    expected = {
        "policy/entropy": math.log(4),
        "policy/approxkl": 0.5 * (0.25 + 1.0) / 2,
        "policy/policykl": (0.5 - 1.0) / 2,
        "policy/advantages_mean": 3.0,
        "policy/clipfrac": 0.5,
        "returns/mean": 1.5,
        "returns/var": 0.5,
        "val/vpred": 2.0,
        "val/error": 0.5,
        "val/clipfrac": 0.0,
        "val/mean": 2.0,
        "val/var": 2.0,
        "loss/value": 0.25,
    }
    assert {name: stats[name].item() for name in expected} == pytest.approx(expected)


def test_advantages_and_ratios_become_one_row():
    first = statistics()
    stacked = ppo_statistics.stack_minibatches(
        [first, {**first, "policy/advantages": torch.tensor([[math.nan]])}]
    )
    assert stacked["val/mean"].tolist() == [[2.0], [2.0]]
    assert stacked["policy/advantages"].tolist() == [[2.0, 4.0, 5.0, -1.0, -1.0, -1.0]]
    assert stacked["policy/ratio"].shape == (1, 6)


def test_a_step():
    texts = [torch.zeros(2), torch.zeros(4)]
    masks = torch.tensor([[1, 0], [1, 1]])
    stats = ppo_statistics.step_statistics(
        0.5,
        scores=torch.tensor([1.0, 3.0]),
        logprobs=torch.tensor([[-1.0, -7.0], [-2.0, -3.0]]),
        ref_logprobs=torch.zeros(2, 2),
        non_score_reward=torch.tensor([[3.0, 9.0], [0.0, 0.0]]),
        train_stats={"val/error": torch.tensor([[1.0], [3.0]]), "returns/var": torch.tensor([[4.0], [4.0]])},
        masks=masks,
        queries=texts,
        responses=texts,
        kls=torch.tensor([[1.0, 9.0], [2.0, 3.0]]),
    )
    assert stats["objective/kl_dist"].tolist() == [1.0, 5.0]
    expected = {
        "objective/kl": 3.0,
        "objective/kl_coef": 0.5,
        "objective/entropy": 3.0,
        "ppo/mean_non_score_reward": 1.0,
        "ppo/mean_scores": 2.0,
        "ppo/std_scores": math.sqrt(2),
        "ppo/val/var_explained": 0.5,
        "tokens/queries_len_mean": 3.0,
        "tokens/responses_len_std": math.sqrt(2),
    }
    assert {name: float(stats[name]) for name in expected} == pytest.approx(expected)


def test_rewards():
    stats = ppo_statistics.reward_statistics(torch.tensor([1.0, 3.0]))
    assert (stats["env/reward_mean"], stats["env/reward_dist"].tolist()) == (2.0, [1.0, 3.0])
    assert stats["env/reward_std"] == pytest.approx(math.sqrt(2))
