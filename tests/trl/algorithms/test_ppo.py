"""Small tensors, with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from compat.trl.algorithms import ppo
from compat.trl.algorithms.ppo import Rollout


def rollout(**given):
    columns = {
        "logprobs": [[0.0, 0.0, 0.0]],
        "values": [[0.0, 0.0, 0.0]],
        "mask": [[1, 1, 0]],
        "advantages": [[1.0, -1.0, 9.0]],
        "returns": [[1.0, 2.0, 9.0]],
    }
    return Rollout(**{name: torch.tensor(values) for name, values in {**columns, **given}.items()})


@pytest.mark.parametrize(
    ("kind", "expected"), [("kl", [0.5, -1.0]), ("abs", [0.5, 1.0]), ("mse", [0.125, 0.5])]
)
def test_divergences_of_tokens(kind, expected):
    logprobs, reference = torch.tensor([-1.0, -3.0]), torch.tensor([-1.5, -2.0])
    assert ppo.estimate_kl(logprobs, reference, kind).tolist() == expected


def test_divergence_of_vocabularies():
    logprobs = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    reference = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    found = ppo.estimate_kl(logprobs, reference, "full")
    assert found.tolist() == pytest.approx([0.0, 0.5 * math.log(3)])


def test_an_unknown_estimator_is_refused():
    with pytest.raises(NotImplementedError, match=r"kl_penalty='none'.*kl, abs, mse, full"):
        ppo.estimate_kl(torch.zeros(1), torch.zeros(1), "none")


def test_scores_are_standardized_and_clipped():
    scores = torch.tensor([1.0, 5.0])
    mean, std = torch.tensor(3.0), torch.tensor(2.0)
    assert ppo.standardize_scores(scores, mean, std, subtract_mean=True).tolist() == [-1.0, 1.0]
    assert ppo.standardize_scores(scores, mean, std, subtract_mean=False).tolist() == [0.5, 2.5]
    clipped = ppo.clip_scores(torch.tensor([-3.0, 0.5], dtype=torch.bfloat16), 2.0)
    assert (clipped.tolist(), clipped.dtype) == ([-2.0, 0.5], torch.bfloat16)


def test_a_score_is_added_at_the_last_response_token():
    kls = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    masks = torch.tensor([[0, 1, 0], [1, 1, 1]])
    rewards, penalties = ppo.token_rewards([torch.tensor(10.0), torch.tensor(20.0)], kls, masks, 0.5)
    assert penalties.tolist() == [[-0.5, -1.0, -1.5], [-2.0, -2.5, -3.0]]
    assert rewards.tolist() == [[-0.5, 9.0, -1.5], [-2.0, -2.5, 17.0]]


def test_advantages_and_returns():
    values, rewards = torch.tensor([[1.0, 2.0, 7.0]]), torch.tensor([[0.0, 4.0, 7.0]])
    kept, advantages, returns = ppo.estimate_advantages(
        values, rewards, torch.tensor([[1, 1, 0]]), 0.5, 0.5, whiten_rewards=False
    )
    # delta = [0 + 0.5 * 2 - 1, 4 - 2, 0] = [0, 2, 0]; advantages = [0.5, 2, 0].
    assert kept.tolist() == [[1.0, 2.0, 0.0]]
    assert returns.tolist() == [[1.5, 4.0, 0.0]]
    mean, deviation = 1.25, math.sqrt(2 * 0.75**2)
    expected = [(one - mean) / deviation for one in (0.5, 2.0, 0.0)]
    assert advantages[0].tolist() == pytest.approx(expected)


def test_whitened_rewards_keep_their_mean():
    _, _, returns = ppo.estimate_advantages(
        torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]), torch.ones(1, 2), 1.0, 0.0, whiten_rewards=True
    )
    assert returns[0].tolist() == pytest.approx([1 - 1 / math.sqrt(2), 1 + 1 / math.sqrt(2)])


def test_the_policy_loss_takes_the_smaller_objective():
    found = ppo.policy_loss(torch.tensor([[1.5, 1.5, 1.0]]).log(), rollout(), 0.2)
    # Objectives: min(1.5, 1.2) and min(-1.5, -1.2).
    assert found.loss.item() == pytest.approx(-(1.2 - 1.5) / 2)
    assert found.ratio[0].tolist() == pytest.approx([1.5, 1.5, 1.0])
    assert found.is_clipped.tolist() == [[True, False, False]]


def test_the_value_loss_takes_the_larger_error():
    found = ppo.value_loss(torch.tensor([[0.5, -1.0, 9.0]]), rollout(), 0.25)
    # Errors: max(0.25, 0.75^2) and max(9, 2.25^2).
    assert found.errors.tolist() == [[0.25, 9.0, 0.0]]
    assert found.loss.item() == pytest.approx(0.5 * (0.5625 + 9.0) / 2)
    assert found.is_clipped.tolist() == [[True, False, True]]
