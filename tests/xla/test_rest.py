"""Refusals on an XLA device, and the parts of a job of several processes that one process can try."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.xla.processes import USES_XLA, results, started

pytestmark = pytest.mark.skipif(not USES_XLA, reason="needs torch_xla: `make test-xla`")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(results(started("tests.xla.rest")))
    return outcome


def test_what_cannot_run_is_refused_with_the_way_out(found: dict[str, Any]) -> None:
    assert found["use_cpu"].startswith("`use_cpu=True`: where torch_xla is installed")
    assert found["optim"].endswith("Give optim='adamw_torch'.")


def test_values_are_gathered_without_a_process_group(found: dict[str, Any]) -> None:
    assert found["gathered"] == [["checkpoint-3", None]]


def test_a_client_without_memory_has_no_statistics(found: dict[str, Any]) -> None:
    assert found["stats"] == {}


def test_the_strategy_of_several_processes_trains_in_one(found: dict[str, Any]) -> None:
    assert found["several"] == ["XLAStrategy", 6]


def test_a_callback_sees_each_batch_and_no_token_is_saved(found: dict[str, Any]) -> None:
    assert found["observed"] == [6, False]
