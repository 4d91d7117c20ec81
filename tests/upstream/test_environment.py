from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from compat.upstream.environment import (
    CONFIGURATION_PREFIXES,
    Facts,
    Here,
    concealed,
    contained,
    is_kept_on_cpu,
    overlaid,
)
from tests.small import arguments

if TYPE_CHECKING:
    from pathlib import Path


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


def test_concealed_hides_and_puts_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    before = dict(os.environ)
    with concealed(CONFIGURATION_PREFIXES):
        os.environ["FSDP_VERSION"] = "2"
        assert not is_kept_on_cpu()
    assert dict(os.environ) == before
    assert is_kept_on_cpu()


def test_facts_of_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with concealed(CONFIGURATION_PREFIXES):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        facts = Facts.of(arguments(tmp_path, fsdp="full_shard"))
        assert facts.launched == {"ACCELERATE_MIXED_PRECISION": "bf16"}
        assert facts.mixed_precision == "bf16"
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert facts.here is not None
    assert not facts.here.is_distributed
    assert Here.look(is_distributed=True).is_distributed
    assert Facts().here is None
