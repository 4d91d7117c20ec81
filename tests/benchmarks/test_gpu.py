from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.parity.record import isolated

SCRIPT = Path(__file__).with_name("gpu.py")


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


# Lightning advises a plain user to have more workers, and to check his model's mode.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_contenders_do_the_same_work(gpu):
    tiny = gpu.SIZES["tiny"]
    with isolated():
        hf, lightning = gpu.work("hf", tiny), gpu.work("lightning", tiny)
    ours = gpu.start_worker("compat", gpu.parse(["--tiny"]))
    for result in (hf, lightning, ours):
        assert result["steps"] == tiny.steps
        assert result["speed"] > 0
        assert result["memory"] > 0
    assert ours["loss"] == hf["loss"]
    # HF divides by all labels of a text, of which the first is nobody's to predict; bf16 has three digits.
    assert lightning["loss"] * (tiny.length - 1) / tiny.length == pytest.approx(hf["loss"], rel=5e-3)
    table = gpu.tabulate([ours, hf, lightning]).splitlines()
    assert [row.split(" | ")[0] for row in table[2:]] == [f"| {name}" for name, _ in gpu.CONTENDERS.values()]
    assert table[2].split(" | ")[2] == "1.000"


def test_the_full_size_has_its_hundred_million_parameters(gpu):
    with gpu.torch.device("meta"):
        model = gpu.Timed(gpu.SIZES["full"])
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(110e6, rel=0.02)
