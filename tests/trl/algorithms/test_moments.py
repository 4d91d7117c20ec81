from __future__ import annotations

import pytest
import torch

from compat.trl.algorithms import moments
from compat.trl.algorithms.moments import Moments


def test_moments_of_a_batch():
    mean, var, size = moments.of_batch(torch.tensor([[1.0, 3.0], [5.0, 7.0]], dtype=torch.float64))
    assert (mean.item(), var.item(), size) == (4.0, 5.0, 4)
    assert mean.dtype == torch.float32


def test_the_first_batch_replaces_the_empty_moments():
    batch = moments.of_batch(torch.tensor([2.0, 6.0]))
    mean, var, size = moments.merge(moments.EMPTY, batch)
    assert (mean.item(), var.item(), size) == (4.0, 4.0, 2.0)


def test_merged_moments_are_those_of_the_union():
    # {1, 3} and {5, 7, 9}: mean 5, squares 16 + 4 + 0 + 4 + 16.
    mean, var, size = moments.merge(Moments(2.0, 1.0, 2), Moments(7.0, 8 / 3, 3))
    assert (mean, var, size) == (5.0, pytest.approx(8.0), 5)


def test_the_deviation_is_unbiased():
    assert moments.unbiased_std(Moments(5.0, 8.0, 5)).item() == pytest.approx(10**0.5)
    assert moments.unbiased_std(Moments(0.0, torch.tensor(3.0), torch.tensor(4.0))).item() == 2.0
