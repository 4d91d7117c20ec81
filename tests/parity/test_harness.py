"""The comparison can fail: small wrongs in a Trainer, a value or a process are found."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests import leaks
from tests.parity.bench import Api, Limit
from tests.parity.parts import steps
from tests.parity.plain import differences, plain
from tests.parity.record import assert_equal, isolated, record
from tests.parity.setups import BY_NAME, SETUPS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

WRONGS = {
    "loss": ("resume/mid-epoch", {"subclass": steps.perturbed}, "gradients"),
    "random draw": ("models/dropout", {"subclass": steps.draws_once_more}, "generators"),
    "event": ("accumulation/3", {"subclass": steps.mute}, "events"),
    "file": ("checkpoints/steps", {"subclass": steps.forgetful}, "rng_state.pth: only in theirs"),
    "gradients kept": ("models/plain", {"subclass": steps.keeps_gradients}, "gradients"),
    "seed": ("models/dropout", {"args": {"seed": 43}}, "weights"),
    "epsilon": ("optimizers/options", {"args": {"adam_epsilon": 1.1e-5}}, "weights"),
}
"""A set-up, how its second run differs, and a place that has to show it."""


@pytest.mark.parametrize("wrong", WRONGS)
def test_finds_a_wrong(wrong: str, theirs: Api, tmp_path: Path) -> None:
    name, change, place = WRONGS[wrong]
    setup = BY_NAME[name]
    if "args" in change:
        change = {"args": {**setup.args, **change["args"]}}
    right = record(setup, theirs, tmp_path / "right")
    other = record(dataclasses.replace(setup, **change), theirs, tmp_path / "other")
    with pytest.raises(AssertionError, match="differences"):
        assert_equal(other, right)
    assert any(place in line for line in differences(other, right))


@pytest.mark.parametrize("name", ["data/augmented", "resume/bert", "generation/sampled"])
def test_finds_nothing_in_the_same_twice(name: str, theirs: Api, tmp_path: Path) -> None:
    first = record(BY_NAME[name], theirs, tmp_path / "first")
    assert_equal(record(BY_NAME[name], theirs, tmp_path / "second"), first)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (1, 1.0),
        (0.0, -0.0),
        (0.1, math.nextafter(0.1, 1)),
        (1.0, math.nan),
        (True, 1),
        ("1", 1),
        (None, 0),
        ([1], [1, 2]),
        ({"a": 1}, {"a": 1, "b": None}),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), np.zeros(2, dtype=np.float32)),
        (torch.zeros(9), torch.tensor([0.0] * 8 + [1e-45])),
        (np.float32(1), 1.0),
    ],
)
def test_values_that_differ(ours: object, theirs: object) -> None:
    assert len(list(differences(plain({"x": ours}), plain({"x": theirs})))) == 1


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (math.nan, math.nan),
        (torch.tensor([math.nan]), torch.tensor([math.nan])),
        ({"eval_runtime": 1.0, "a": 2}, {"a": 2, "eval_runtime": 3.0}),
        ({"init_mem_cpu_alloc_delta": 1}, {"init_mem_cpu_alloc_delta": 2}),
        ((1, 2), [1, 2]),
    ],
)
def test_values_that_do_not_differ(ours: object, theirs: object) -> None:
    assert list(differences(plain({"x": ours}), plain({"x": theirs}))) == []


def test_names_the_place_and_both_values() -> None:
    (line,) = differences({"a": [{"b": 1.5}]}, {"a": [{"b": 2.5}]})
    assert line.split() == ["a[0].b:", "ours", "1.5", "theirs", "2.5"]


def test_refuses_what_has_no_exact_form() -> None:
    with pytest.raises(TypeError, match="no plain form"):
        plain({"x": object()})


def test_replaces_the_folder_of_the_run(tmp_path: Path) -> None:
    assert plain({"best": str(tmp_path / "checkpoint-3")}, tmp_path) == {"best": "<out>/checkpoint-3"}


def test_isolation_puts_back_environment_and_determinism() -> None:
    with isolated():
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        torch.use_deterministic_algorithms(mode=True)
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()


def test_isolation_leaves_what_is_not_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    with isolated(forgiving=False):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_leaks_are_found_and_put_back() -> None:
    before = leaks.snapshot()
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    os.environ["RANK"] = "0"
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    found = leaks.changes(before, leaks.snapshot())
    leaks.clean_up(before)
    assert [line.split(":")[0] for line in found] == ["environment", "signal handlers"]
    assert leaks.changes(before, leaks.snapshot()) == []


def test_names_are_unique() -> None:
    assert [name for name, n in Counter(setup.name for setup in SETUPS).items() if n > 1] == []


def test_limits() -> None:
    assert Limit("why", since="5").excludes("4.53.1")
    assert not Limit("why", since="5").excludes("5.23.0")
    assert Limit("why", before="5").excludes("5.0.0")
    assert not Limit("why", before="5").excludes("4.57.1")
