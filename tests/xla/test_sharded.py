"""torch_xla's FSDP in one process: version 1 on one device, version 2 over two by SPMD."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.xla.processes import USES_XLA, results, started

pytestmark = pytest.mark.skipif(not USES_XLA, reason="needs torch_xla: `make test-xla`")

WAYS = ("v1", "v2")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Way → what came of it."""
    found = {}
    for way, devices in (("one", "1"), ("v1", "1"), ("v2", "2")):
        found[way] = json.loads(results(started("tests.xla.sharded", way, CPU_NUM_DEVICES=devices)))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_equal_to_the_unsharded_model(outcomes: dict[str, Any], way: str) -> None:
    # The devices add up their parts of a sum in another order.
    assert outcomes[way]["logs"] == pytest.approx(outcomes["one"]["logs"], abs=1e-6)
    assert outcomes[way]["saved"] == pytest.approx(outcomes["one"]["saved"], abs=1e-5)
    assert outcomes[way]["strategy"] == "single_xla"


@pytest.mark.parametrize("way", WAYS)
def test_resumed_as_if_uninterrupted(outcomes: dict[str, Any], way: str) -> None:
    assert outcomes[way]["resumed"] == {name: outcomes[way][name] for name in ("logs", "saved")}


def test_parameters_are_spread_over_the_devices_by_spmd(outcomes: dict[str, Any]) -> None:
    assert {way: outcomes[way]["is_spread"] for way in outcomes} == {"one": False, "v1": False, "v2": True}


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_not_loaded_into_shards(outcomes: dict[str, Any], way: str) -> None:
    told = "`load_best_model_at_end=True` with `fsdp_config={'xla': True}`: no weights are loaded"
    assert outcomes[way]["refusal"].startswith(told)
