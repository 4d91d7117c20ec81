from __future__ import annotations

import os

import pytest

from compat.upstream.environment import contained, overlaid


def test_contained_undoes_what_is_set_changed_and_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "before")
    monkeypatch.setenv("FSDP_VERSION", "before")
    with contained() as written:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        os.environ["ACCELERATE_USE_CPU"] = "after"
        del os.environ["FSDP_VERSION"]
    assert written == {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "after"}
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert os.environ["ACCELERATE_USE_CPU"] == os.environ["FSDP_VERSION"] == "before"


def test_contained_undoes_also_after_an_error() -> None:
    def fail() -> None:
        os.environ["FSDP_VERSION"] = "2"
        raise KeyError

    with pytest.raises(KeyError), contained():
        fail()
    assert "FSDP_VERSION" not in os.environ


def test_overlaid_shows_variables_to_its_block_alone() -> None:
    with overlaid({"ACCELERATE_MIXED_PRECISION": "bf16"}):
        assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
