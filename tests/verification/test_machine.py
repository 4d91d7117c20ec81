from __future__ import annotations

import itertools
import types

import pytest
import torch

from compat.errors import ArgumentError
from compat.verification import machine
from compat.verification.machine import SETUPS, Result, Setup, Survey, survey
from compat.verification.report import DIFFERS, EQUAL, NOTHING, Report


def test_every_set_up_has_one_place_on_a_machine_without_gpus() -> None:
    places = {(setup.name, setup.kind): [*machine._places(setup)] for setup in SETUPS}
    assert all(len(each) == 1 for each in places.values())
    if not torch.cuda.is_available():
        assert places["fp32", "cuda"][0].obstacle == "no GPU is visible"
    assert places["fp32", "cpu"][0].obstacle == ""
    assert places["fsdp2", "cpu"][0].obstacle == "HF's Trainer does not shard models on a CPU"


def test_a_set_up_of_one_device_runs_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Model {number}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    places = [*machine._places(Setup("fp32", "cuda"))]
    assert [(each.title, each.variables) for each in places] == [
        ("GPU 0, Model 0", {"CUDA_VISIBLE_DEVICES": "4"}),
        ("GPU 1, Model 1", {"CUDA_VISIBLE_DEVICES": "7"}),
    ]
    (both,) = machine._places(Setup("ddp", "cuda", 2))
    assert (both.title, both.obstacle) == ("2 GPUs", "")


def test_other_devices_are_devices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine.Facts, "device_type_here", lambda: "npu")
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(device_count=lambda: 2), raising=False)
    places = [place for setup in SETUPS if setup.kind == "cuda" for place in machine._places(setup)]
    assert {place.title for place in places} == {"npu", "npu, 2 devices"}
    (place,) = machine._places(Setup("ddp", "cuda", 4))
    assert place.obstacle == "of 4 devices, 2 is visible"


def test_the_cpu_is_tried_without_torch_xla_and_its_device_with_it() -> None:
    used = {
        (setup.kind, place.variables.get("USE_TORCH_XLA"))
        for setup in SETUPS
        for place in machine._places(setup)
        if setup.kind != "cuda"
    }
    assert used == {("cpu", "0"), ("xla", "1")}


def test_a_package_that_is_missing_is_named() -> None:
    (place,) = machine._places(Setup("zero2", "cpu", package="no_such_package"))
    assert place.obstacle == "no_such_package is not installed"


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (("equal", "not available"), EQUAL),
        (("within spread",), EQUAL),
        (("equal", "differs"), DIFFERS),
        (("not available", "not available"), NOTHING),
    ],
)
def test_the_status_of_a_survey(outcomes: tuple[str, ...], status: int) -> None:
    numbers = itertools.count()
    assert Survey([Result(str(next(numbers)), "CPU", outcome) for outcome in outcomes]).status == status


def test_a_set_up_that_fails_under_hf_is_not_available() -> None:
    report = Report(NOTHING, "nothing verified: the script fails under HF's own Trainer (status 1):\nE: no")
    assert machine._outcome(report) == ("not available", "under HF's Trainer: E: no")


def test_an_unknown_set_up_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"`only=fp23`: no such set-up\. Give some of bf16, ddp"):
        survey([], only=["fp23"])
