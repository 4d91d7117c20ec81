"""A device that Lightning does not know: equal to HF digit for digit, and resumed as if uninterrupted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.devices.cases import CASES

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return outcomes(HERE / "packages")


def outcomes(*paths: Path, cases: tuple[str, ...] = (), **variables: str) -> dict[str, Any]:
    """Package → case → what came of it."""
    path = os.pathsep.join(map(str, (*paths, HERE.parents[1])))
    found = {}
    for package in ("transformers", "compat"):
        # Not a process that has imported torch: the device comes first.
        done = subprocess.run(
            [sys.executable, "-m", "tests.devices.runs", package, *cases],
            env=os.environ | {"PYTHONPATH": path} | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
        assert lines, done.stderr[-3000:]
        found[package] = json.loads(lines[0].removeprefix("RESULTS "))
    return found


@pytest.mark.parametrize("case", CASES)
def test_equal_to_hf(results: dict[str, Any], case: str) -> None:
    hf, ours = results["transformers"][case], results["compat"][case]
    assert ours["logs"] == hf["logs"]
    assert ours["weights"] == hf["weights"]


@pytest.mark.parametrize("case", CASES)
def test_resumed_as_if_uninterrupted(results: dict[str, Any], case: str) -> None:
    ours = results["compat"][case]
    assert ours["resumed"]["weights"] == ours["weights"]
    # The last log has the mean loss of the steps that its own process has made, as under HF.
    assert ours["resumed"]["logs"][:-1] == ours["logs"][:-1]


@pytest.mark.parametrize("case", CASES)
def test_no_more_copies_from_the_device(results: dict[str, Any], case: str) -> None:
    hf, ours = results["transformers"][case]["counts"], results["compat"][case]["counts"]
    for kind, count in ours.items():
        assert count <= hf[kind], kind


def test_gradients_overflow(results: dict[str, Any]) -> None:
    norms = [log["grad_norm"] for log in results["compat"]["overflow"]["logs"] if "grad_norm" in log]
    assert not all(map(math.isfinite, norms))


def test_a_device_that_torch_calls_tpu_is_no_xla_device() -> None:
    # transformers knows no such device; accelerate takes it from the variable.
    found = outcomes(cases=("plain",), STAND_IN="tpu", ACCELERATE_TORCH_DEVICE="tpu")
    hf, ours = found["transformers"]["plain"], found["compat"]["plain"]
    assert ours["logs"] == hf["logs"]
    assert ours["weights"] == hf["weights"]
