from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from compat.verification.digests import SAMPLE, digest, files, generators, leaves, weight_sum
from compat.verification.mirror import Mirror
from tests.benchmarks.test_calls import Syncs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "array",
    [
        torch.arange(1000, dtype=torch.float32).reshape(10, 100),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor(5),
        torch.tensor([True, False]),
        torch.empty(0, 3),
        torch.tensor([1 + 2j]),
        torch.ones(2, 2).t(),
        torch.eye(3).to_sparse(),
        np.array([1.5, 2.5]),
        np.array(["a", "bc"]),
        np.array([], dtype=np.int64),
    ],
    ids=str,
)
def test_a_digest_describes_any_array(array: torch.Tensor | np.ndarray) -> None:
    found = digest(array)
    assert len(found["sha256"]) == 64
    assert len(found["sample"]) <= SAMPLE
    assert digest(array) == found


def test_a_digest_changes_with_one_bit() -> None:
    tensor = torch.zeros(10_000)
    before = digest(tensor)
    tensor[9_999] = 1e-45
    after = digest(tensor)
    assert before["sha256"] != after["sha256"]
    assert before["sample"] == after["sample"]  # that value is not among the sampled ones


def test_leaves_have_paths() -> None:
    state = OrderedDict(a=[1, {"b": None}], c=(torch.ones(1),), d="/home/run/x", e=object())
    found = leaves(state, "/home/run")
    assert found["a[0]"] == 1
    assert found["a[1].b"] is None
    assert found["c[0]"]["sample"] == [1.0]
    assert found["d"] == "<output>/x"
    assert found["e"] == "<builtins.object>"


def test_a_long_list_of_numbers_is_an_array() -> None:
    assert leaves({"x": list(range(100))})["x"]["shape"] == [100]


def test_the_sum_shows_a_change_of_any_weight() -> None:
    model = torch.nn.Linear(100, 100)
    before = weight_sum(model)
    with torch.no_grad():
        model.weight[3, 4] += 1e-7
    assert weight_sum(model) != before


def test_the_sum_looks_once_at_a_device() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with Syncs() as looks:
        found = weight_sum(model)
    assert looks.count == 1
    assert found == pytest.approx(sum(float(weight.detach().double().sum()) for weight in model.parameters()))
    assert weight_sum(torch.nn.Identity()) == 0.0


def test_generators_are_told_apart() -> None:
    state = torch.get_rng_state()
    before = generators()
    assert generators() == before  # recording draws nothing
    torch.rand(1)
    assert generators() != before
    torch.set_rng_state(state)


def test_files_that_a_run_has_written(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "there.txt").write_text("before")
    mirror = Mirror(str(tmp_path / "root"))
    home = mirror.make(str(tmp_path / "place"))
    for name, value in (("a.pt", {"x": torch.ones(2)}), ("b.bin", [torch.zeros(1)])):
        torch.save(value, f"{home}/{name}")
    for name in ("c.txt", "skipped.txt", "broken.pt", "events.out.tfevents.1"):
        with open(f"{home}/{name}", "w") as file:
            file.write(home)
    found = files(mirror, home, ("skipped*",))
    assert {name for name, value in found.items() if value == "file"} == {
        "a.pt",
        "b.bin",
        "c.txt",
        "broken.pt",
    }
    assert found["a.pt: x"]["shape"] == [2]
    assert found["broken.pt: "].startswith("present, not readable")
