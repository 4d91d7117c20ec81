"""Small tensors, with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from compat.trl.algorithms import dpo

# Log-ratios: chosen 1 and -1, rejected -1 and 1; margins 2 and -2.
LOGPS = [torch.tensor(column) for column in ([-1.0, -4.0], [-3.0, -2.0], [-2.0, -3.0], [-2.0, -3.0])]


def losses(**options):
    return dpo.preference_losses(*LOGPS, **{"beta": 0.5, **options})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sigmoid", [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))]),
        ("hinge", [0.0, 2.0]),
        ("ipo", [1.0, 9.0]),
        # The mean log-ratio of each side is zero.
        ("kto_pair", [1 - 1 / (1 + math.exp(-0.5 * ratio)) for ratio in (1, -1, 1, -1)]),
    ],
)
def test_losses(kind, expected):
    found, *_ = losses(loss_type=kind)
    assert found.tolist() == pytest.approx(expected)


def test_rewards_are_detached():
    policy = [column.clone().requires_grad_() for column in LOGPS[:2]]
    found, *rewards = dpo.preference_losses(*policy, *LOGPS[2:], loss_type="hinge", beta=0.5)
    assert [reward.tolist() for reward in rewards] == [[0.5, -0.5], [-0.5, 0.5]]
    assert found.requires_grad
    assert not any(reward.requires_grad for reward in rewards)


def test_smoothed_and_free_of_a_reference():
    plain, swapped = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    smoothed, *_ = losses(loss_type="sigmoid", label_smoothing=0.25)
    assert smoothed.tolist() == pytest.approx([0.75 * plain + 0.25 * swapped, 0.75 * swapped + 0.25 * plain])
    free, *_ = dpo.preference_losses(
        *LOGPS[:2], LOGPS[2] * 7, LOGPS[3], loss_type="hinge", beta=0.5, reference_free=True
    )
    assert free.tolist() == [0.0, 2.0]


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match=r"Unknown loss type: kto\. .*'sigmoid', 'hinge', 'ipo', 'kto_pair'"):
        losses(loss_type="kto")


def test_metrics_of_a_batch():
    rewards = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([0.0, 3.0, 1.0, 0.0])
    logps = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -6.0])
    logits = torch.full((2, 1, 2), 3.0), torch.full((2, 1, 2), 5.0)
    metrics = dpo.batch_metrics(rewards, logps, logits, "eval_")
    assert {name: value.item() for name, value in metrics.items()} == {
        "eval_rewards/chosen": 1.5,
        "eval_rewards/rejected": 1.0,
        "eval_rewards/accuracies": 0.5,
        "eval_rewards/margins": 0.5,
        "eval_logps/rejected": -4.0,
        "eval_logps/chosen": -2.0,
        "eval_logits/rejected": 5.0,
        "eval_logits/chosen": 3.0,
    }
    assert dpo.mean_logits(metrics, []).tolist() == [3.0, 5.0]
    assert dpo.mean_logits(metrics, ["eval_logits/chosen"]).tolist() == [5.0]
