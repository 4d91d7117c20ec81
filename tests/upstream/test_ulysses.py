from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compat.upstream import ulysses


def test_attention_is_put_back_after_an_error() -> None:
    def failing() -> None:
        with ulysses.own_attention():
            ALL_ATTENTION_FUNCTIONS["sdpa"] = print
            raise ZeroDivisionError

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(ZeroDivisionError):
        failing()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_attention_that_a_script_has_replaced_stays() -> None:
    with ulysses.own_attention():
        ALL_ATTENTION_FUNCTIONS["sdpa"] = repr
        with ulysses.own_attention():
            ALL_ATTENTION_FUNCTIONS["sdpa"] = print
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is repr


def test_groups_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    ulysses.release()  # without DeepSpeed nothing happens
    state = SimpleNamespace(**dict.fromkeys(ulysses.GROUPS, object()))
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.sequence_parallel.parallel_state_sp", state)
    ulysses.release()
    assert set(vars(state).values()) == {None}
