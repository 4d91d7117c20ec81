"""Copies of states are kept apart from training, in memory that is kept between saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compat.checkpoint.staging import Staging, are_plain


def state() -> dict[str, Any]:
    return {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.arange(6.0).reshape(2, 3)}},
        "groups": [{"betas": [0.9, 0.999], "params": [0]}],
    }


def test_a_copy_is_not_changed_by_training() -> None:
    live, staging = state(), Staging()
    staging.begin()
    copied = staging.copied(live)
    live["state"][0]["exp_avg"].zero_()
    live["groups"][0]["betas"][0] = 0.5
    assert copied["state"][0]["exp_avg"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copied["groups"] == [{"betas": [0.9, 0.999], "params": [0]}]


def test_the_next_save_reuses_the_memory() -> None:
    live, staging = state(), Staging()
    places = []
    for _ in range(3):
        staging.begin()
        copied = [staging.copied(live), staging.copied(live)]
        places.append({copy["state"][0]["exp_avg"].data_ptr() for copy in copied})
        live["state"][0]["exp_avg"] += 1
        assert len(places[-1]) == 2
    assert places[0] == places[1] == places[2]
    assert copied[0]["state"][0]["exp_avg"].tolist() == [[2, 3, 4], [5, 6, 7]]


def test_memory_that_a_save_has_not_used_is_released() -> None:
    staging = Staging()
    staging.begin()
    staging.copied(torch.ones(3))
    staging.begin()
    staging.copied(torch.ones(4))
    staging.begin()
    assert [tuple(place.shape) for kept in staging._free.values() for place in kept] == [(4,)]
    staging.release()
    assert not staging._free
    assert not staging._used


@pytest.mark.parametrize(
    "value",
    [torch.ones(2, 3).t(), torch.ones(2, 2).to_sparse(), torch.nn.Parameter(torch.ones(2)), torch.ones(0)],
    ids=["transposed", "sparse", "parameter", "empty"],
)
def test_a_copy_has_the_form_of_the_original(value: torch.Tensor) -> None:
    staging = Staging()
    for _ in range(2):
        staging.begin()
        copied = staging.copied(value)
        assert copied.layout == value.layout
        assert not copied.requires_grad
        assert torch.equal(copied.to_dense(), value.to_dense())
        if value.layout is torch.strided:
            assert copied.stride() == value.stride()


def test_plain_tensors() -> None:
    both = torch.ones(4)
    assert are_plain([torch.ones(2), torch.nn.Parameter(torch.ones(3))])
    assert not are_plain([both[:2], both[2:]])
    assert not are_plain([torch.ones(2, 3).t()])
    assert not are_plain([torch.ones(2, 2).to_sparse()])
    assert not are_plain([torch.ones(2).as_subclass(Kind)])


class Kind(torch.Tensor):
    """A tensor that is written in its own way."""
