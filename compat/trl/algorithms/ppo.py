"""Proximal policy optimization of language models: KL penalties, rewards, advantages and losses.

Schulman et al., Proximal Policy Optimization Algorithms (2017, arXiv:1707.06347); for language models Ziegler
et al., Fine-Tuning Language Models from Human Preferences (2019, arXiv:1909.08593).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import kl_div

from compat.trl.core import clip_by_value, masked_mean, masked_whiten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": lambda logprob, ref: logprob - ref,
    "abs": lambda logprob, ref: (logprob - ref).abs(),
    "mse": lambda logprob, ref: (logprob - ref).square() * 0.5,
    "full": lambda logprob, ref: kl_div(ref, logprob, log_target=True, reduction="none").sum(-1),
}
"""`PPOConfig.kl_penalty` → estimator of the KL divergence per token."""


class Rollout(NamedTuple):
    """The old policy's view of a batch; tensors have shape (batch size, length).

    Attributes:
        logprobs: log-probabilities of the tokens.
        values: values.
        mask: one for response tokens.
        advantages: advantages.
        returns: returns.
    """

    logprobs: Tensor
    values: Tensor
    mask: Tensor
    advantages: Tensor
    returns: Tensor


class PolicyLoss(NamedTuple):
    """The clipped surrogate objective.

    Attributes:
        loss: a scalar.
        ratio: probability ratios, shape (batch size, length).
        is_clipped: where clipping changes the objective, of the same shape.
    """

    loss: Tensor
    ratio: Tensor
    is_clipped: Tensor


class ValueLoss(NamedTuple):
    """The clipped value loss.

    Attributes:
        loss: a scalar.
        errors: squared errors without clipping, shape (batch size, length).
        is_clipped: where clipping changes the error, of the same shape.
    """

    loss: Tensor
    errors: Tensor
    is_clipped: Tensor


def estimate_kl(logprobs: Tensor, ref_logprobs: Tensor, kl_penalty: str) -> Tensor:
    """Estimate the KL divergence between a policy and its reference per token.

    Args:
        logprobs: log-probabilities of the policy, shape (length,); of the whole vocabulary, shape (length,
            vocabulary), for "full".
        ref_logprobs: log-probabilities of the reference, of the same shape.
        kl_penalty: a key of `KL_ESTIMATORS`.

    Returns:
        Estimates, shape (length,).

    Raises:
        NotImplementedError: `kl_penalty` is unknown.
    """
    estimator = KL_ESTIMATORS.get(kl_penalty)
    if estimator is None:
        msg = f"`kl_penalty={kl_penalty!r}`: choose among {', '.join(KL_ESTIMATORS)}."
        raise NotImplementedError(msg)
    return estimator(logprobs, ref_logprobs)


def standardize_scores(scores: Tensor, mean: Tensor, std: Tensor, *, subtract_mean: bool) -> Tensor:
    """Divide scores by the running standard deviation, optionally after the mean is subtracted.

    Args:
        scores: shape (batch size,).
        mean: a scalar.
        std: a scalar.
        subtract_mean: whether to subtract the mean.
    """
    centred = scores - mean if subtract_mean else scores
    return centred / (std + torch.finfo(scores.dtype).eps)


def clip_scores(scores: Tensor, bound: float) -> Tensor:
    """Clip scores, shape (batch size,), to the interval from `-bound` to `bound`."""
    return scores.float().clip(-bound, bound).to(scores.dtype)


def token_rewards(
    scores: Iterable[Tensor], kls: Tensor, masks: Tensor, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """Compute the KL penalty of each token, and add the score to the last token of each response.

    Ziegler et al. (2019, arXiv:1909.08593), equation 2.

    Args:
        scores: a number per response.
        kls: KL estimates, shape (batch size, length).
        masks: one for response tokens, shape (batch size, length).
        kl_coef: the KL coefficient.

    Returns:
        Rewards and penalties, shape (batch size, length) each.
    """
    penalties = -kl_coef * kls
    last = torch.stack([mask.nonzero()[-1] for mask in masks])
    each = torch.stack([torch.as_tensor(score) for score in scores]).to(penalties).unsqueeze(1)
    # Out of place: log-probabilities may carry a graph.
    return penalties.scatter_add(1, last, each), penalties


def estimate_advantages(
    values: Tensor, rewards: Tensor, mask: Tensor, gamma: float, lam: float, *, whiten_rewards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute advantages by generalized advantage estimation.

    Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation (2016,
    arXiv:1506.02438), equation 16.

    Args:
        values: shape (batch size, length).
        rewards: shape (batch size, length).
        mask: one for response tokens, shape (batch size, length).
        gamma: the discount.
        lam: the decay of the estimator.
        whiten_rewards: whether to scale rewards to unit variance.

    Returns:
        Masked values; whitened advantages; returns; shape (batch size, length) each.
    """
    values, rewards = values * mask, rewards * mask
    if whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values
    advantages = torch.empty_like(deltas)
    decay = gamma * lam
    running = torch.zeros_like(deltas[:, 0])
    for token in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, token] + decay * running
        advantages[:, token] = running
    returns = advantages + values
    return values, masked_whiten(advantages, mask).detach(), returns


def policy_loss(logprobs: Tensor, old: Rollout, cliprange: float) -> PolicyLoss:
    """Compute the clipped surrogate objective, negated.

    Schulman et al. (2017, arXiv:1707.06347), equation 7.

    Args:
        logprobs: log-probabilities with their graph, shape (batch size, length).
        old: the batch.
        cliprange: the maximal distance between the ratio and 1.
    """
    ratio = torch.exp(logprobs - old.logprobs)
    surrogates = -old.advantages * ratio
    clipped = -old.advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    loss: Tensor = masked_mean(torch.maximum(surrogates, clipped), old.mask)
    return PolicyLoss(loss, ratio, clipped > surrogates)


def value_loss(vpreds: Tensor, old: Rollout, cliprange_value: float) -> ValueLoss:
    """Compute half the squared error of values, which are clipped to an interval around the old values.

    Args:
        vpreds: values with their graph, shape (batch size, length).
        old: the batch.
        cliprange_value: the maximal distance between new and old values.
    """
    errors = (vpreds - old.returns) ** 2
    near = clip_by_value(vpreds, old.values - cliprange_value, old.values + cliprange_value)
    clipped = (near - old.returns) ** 2
    loss: Tensor = 0.5 * masked_mean(torch.maximum(errors, clipped), old.mask)
    return ValueLoss(loss, errors, clipped > errors)
