"""Mean and variance of a stream of numbers.

Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance (1983).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = float | Tensor


class Moments(NamedTuple):
    """Moments of a set of numbers; each is a number or a scalar tensor.

    Attributes:
        mean: the mean.
        var: the biased variance.
        size: the number of elements.
    """

    mean: Number
    var: Number
    size: Number


EMPTY = Moments(mean=0, var=1, size=1e-24)
"""The moments before the first batch; the size is positive because `merge` divides by the total."""


def of_batch(xs: Tensor) -> Moments:
    """Return the moments of a tensor of any shape, in float32."""
    var, mean = torch.var_mean(xs, unbiased=False)
    return Moments(mean.float(), var.float(), xs.numel())


def merge(stream: Moments, batch: Moments) -> Moments:
    """Return the moments of the union of two disjoint sets.

    Args:
        stream: the moments of the first set.
        batch: the moments of the second set.
    """
    total = stream.size + batch.size
    distance = batch.mean - stream.mean
    between = distance**2 * stream.size * batch.size / total
    var = (stream.var * stream.size + between + batch.var * batch.size) / total
    return Moments(stream.mean + distance * batch.size / total, var, total)


def unbiased_std(moments: Moments) -> Tensor:
    """Return the unbiased standard deviation, a scalar in float32."""
    unbiased: Tensor = torch.as_tensor(moments.var * moments.size / (moments.size - 1))
    return unbiased.float().sqrt()
