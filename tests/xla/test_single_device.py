"""One XLA device: equal to HF digit for digit, as many programs, and resumed as if uninterrupted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.xla.cases import CASES
from tests.xla.processes import USES_XLA, results, started

pytestmark = pytest.mark.skipif(not USES_XLA, reason="needs torch_xla: `make test-xla`")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Package → case → what came of it."""
    both = {package: started("tests.xla.runs", package) for package in ("transformers", "compat")}
    return {package: json.loads(results(process)) for package, process in both.items()}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_hf(outcomes: dict[str, Any], case: str) -> None:
    hf, ours = outcomes["transformers"][case], outcomes["compat"][case]
    assert ours["logs"] == hf["logs"]
    assert ours["weights"] == hf["weights"]
    assert ours["checkpoints"] == hf["checkpoints"]
    assert ours.get("predicted") == hf.get("predicted")


@pytest.mark.parametrize("case", CASES)
def test_no_more_programs_than_under_hf(outcomes: dict[str, Any], case: str) -> None:
    hf, ours = outcomes["transformers"][case]["counts"], outcomes["compat"][case]["counts"]
    assert ours["compilations"] <= hf["compilations"]
    assert ours["executions"] <= hf["executions"]


def test_no_program_is_compiled_after_the_third_step(outcomes: dict[str, Any]) -> None:
    compiled = [counts["compilations"] for counts in outcomes["compat"]["plain"]["by_step"]]
    assert set(compiled[2:]) == {compiled[2]}


@pytest.mark.parametrize("case", CASES)
def test_resumed_as_if_uninterrupted(outcomes: dict[str, Any], case: str) -> None:
    ours = outcomes["compat"][case]
    assert ours["resumed"]["weights"] == ours["weights"]
    assert ours["resumed"]["checkpoints"] == ours["checkpoints"]
    # The last log has the mean loss of the steps that its own process has made, as under HF.
    assert ours["resumed"]["logs"][:-1] == ours["logs"][:-1]
