from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.warm import PYTHON

BENCH = Path(__file__).with_name("bench.py")
STEPS = 6


def run(contender):
    command = [PYTHON, BENCH, "--contender", contender, "--model", "tiny", "--processes", "1"]
    done = subprocess.run([*command, "--steps", str(STEPS)], capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"con')]
    return {result["accumulation"]: result for result in results}


@pytest.fixture(scope="module")
def bare():
    return run("bare")


@pytest.mark.parametrize("contender", ["hf", "lightning", "compat"])
def test_contenders_do_the_same_work(contender, bare):
    results = run(contender)
    assert results.keys() == bare.keys() == {1, 8}
    for accumulation, result in results.items():
        assert result["steps"] == STEPS
        assert result["milliseconds"] > 0
        # A comparison of speed is fair if the outcome is the same to the last bit.
        assert result["loss"] == bare[accumulation]["loss"]
        assert result["weights"] == bare[accumulation]["weights"]
