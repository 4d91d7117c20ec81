"""Direct preference optimization and its variants: losses and metrics on log-probabilities of answers.

Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward Model (2023,
arXiv:2305.18290).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from torch import Tensor

UNSMOOTHED = ("hinge", "ipo", "kto_pair")
"""Loss types without label smoothing."""


def preference_losses(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    loss_type: str,
    beta: float,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the losses of pairs of answers, and the implicit rewards of the answers.

    Args:
        policy_chosen: log-probabilities of the chosen answers, shape (batch,); for IPO, averages over tokens.
        policy_rejected: the same for the rejected answers.
        reference_chosen: the same for the chosen answers, from the reference.
        reference_rejected: the same for the rejected answers, from the reference.
        loss_type: "sigmoid" (Rafailov et al. 2023, arXiv:2305.18290, equation 7), "hinge" (Zhao et al.,
            SLiC-HF, 2023, arXiv:2305.10425), "ipo" (Azar et al. 2023, arXiv:2310.12036) or "kto_pair"
            (Ethayarajh et al., the KTO report, 2023).
        beta: the temperature; tau of IPO.
        label_smoothing: the probability of wrong preferences, for "sigmoid".
        reference_free: whether the reference is uniform.

    Returns:
        Losses, shape (batch,), for "kto_pair" (2 * batch,); detached rewards of chosen and of rejected
        answers, shape (batch,) each.

    Raises:
        ValueError: `loss_type` is unknown.
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    logits = policy_chosen - policy_rejected
    if not reference_free:
        logits = logits - (reference_chosen - reference_rejected)
    if loss_type == "sigmoid":
        right_loss = -functional.logsigmoid(beta * logits)
        losses = right_loss * (1 - label_smoothing) - functional.logsigmoid(-beta * logits) * label_smoothing
    elif loss_type == "hinge":
        losses = torch.relu(1 - beta * logits)
    elif loss_type == "ipo":
        losses = (logits - 1 / (2 * beta)) ** 2
    elif loss_type == "kto_pair":
        losses = _kto_pair(chosen, rejected, beta)
    else:
        msg = f"Unknown loss type: {loss_type}. `loss_type` should be one of {['sigmoid', *UNSMOOTHED]}."
        raise ValueError(msg)
    return losses, beta * chosen.detach(), beta * rejected.detach()


def _kto_pair(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Compare the log-ratios of each side with the KL estimate of the other side."""
    chosen_kl, rejected_kl = (ratios.mean().clamp(min=0) for ratios in (chosen, rejected))
    gains = torch.cat((beta * (chosen - rejected_kl), beta * (chosen_kl - rejected)), dim=0)
    return 1 - torch.sigmoid(gains)


def mean_logits(metrics: Mapping[str, Tensor], ignored: Container[str]) -> Tensor:
    """Stack the mean logits of both sides, shape (2,), or of those that are not ignored.

    Args:
        metrics: the result of `batch_metrics` with the prefix "eval_".
        ignored: names to leave out.
    """
    names = ("eval_logits/chosen", "eval_logits/rejected")
    return torch.stack([metrics[name] for name in names if name not in ignored])


def batch_metrics(
    rewards: tuple[Tensor, Tensor], logps: tuple[Tensor, Tensor], logits: tuple[Tensor, Tensor], prefix: str
) -> dict[str, Tensor]:
    """Average the logged metrics of a batch. In each pair, the chosen answers come first.

    Args:
        rewards: implicit rewards, shape (batch,) each.
        logps: log-probabilities, shape (batch,) each.
        logits: shape (batch, length, vocabulary) each.
        prefix: the prefix of the names.

    Returns:
        Name → scalar on the CPU.
    """
    chosen, rejected = rewards
    found = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "rewards/margins": chosen - rejected,
        "logps/rejected": logps[1],
        "logps/chosen": logps[0],
        "logits/rejected": logits[1],
        "logits/chosen": logits[0],
    }
    return {f"{prefix}{name}": value.detach().mean().cpu() for name, value in found.items()}
