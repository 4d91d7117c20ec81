"""Names that scripts of 2024 import besides the Trainer, and that transformers has removed since.

`compat.install()` supplies them where the installed release lacks them.
"""

from __future__ import annotations

import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_torch_xla_available

EvaluationStrategy = IntervalStrategy


def is_torch_tpu_available(check_device: bool = True) -> bool:
    """Whether there is a TPU; the older name of `is_torch_xla_available`.

    Args:
        check_device: whether a device must be there, beside the package.
    """
    return bool(is_torch_xla_available(check_is_tpu=check_device))


def send_example_telemetry(*args: object, **kwargs: object) -> None:
    """Nothing: it told the Hub that an example was run.

    Args:
        args: the example and its arguments.
        kwargs: the framework.
    """


def top_k_top_p_filtering(
    logits: torch.Tensor,
    top_k: int = 0,
    top_p: float = 1.0,
    filter_value: float = -float("inf"),
    min_tokens_to_keep: int = 1,
) -> torch.Tensor:
    """Logits of all but the likeliest tokens put to `filter_value`; shape (batch, vocabulary).

    Mirrors the function of that name in transformers 4.37.

    Args:
        logits: shape (batch, vocabulary).
        top_k: how many tokens are kept; all for 0.
        top_p: the share of probability that the kept tokens make up.
        filter_value: for the others.
        min_tokens_to_keep: how many are kept in any case.
    """
    none = torch.empty(0, dtype=torch.long)
    options = {"filter_value": filter_value, "min_tokens_to_keep": min_tokens_to_keep}
    if top_k > 0:
        logits = TopKLogitsWarper(top_k=top_k, **options)(none, logits)
    if 0 <= top_p <= 1:
        logits = TopPLogitsWarper(top_p=top_p, **options)(none, logits)
    return logits
