from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import compat
from compat.arguments.machine import machine_problems, one_process_problems, processes_for
from compat.errors import ArgumentError
from compat.upstream import process, started
from compat.upstream.environment import Here

if TYPE_CHECKING:
    from pathlib import Path

ONE_GPU = Here(device_type="cuda", devices=1)
FOUR_GPUS = Here(device_type="cuda", devices=4)
CPU = Here()


def asked(**options: Any) -> SimpleNamespace:
    nothing = {"lightning": None, "ddp_backend": None, "deepspeed": None, "fsdp": None, "fsdp_config": None}
    return SimpleNamespace(**{**nothing, "use_cpu": False, **options})


def found(here: Here | None, device_type: str | None = None, **options: Any) -> str:
    kind = device_type or (here.device_type if here else "cuda")
    return "\n".join(machine_problems(asked(**options), kind, here))


@pytest.mark.parametrize(
    ("here", "devices", "text"),
    [
        (ONE_GPU, 3, "`lightning={'devices': 3}`: this machine has 1 of kind 'cuda'."),
        (ONE_GPU, "2", "`lightning={'devices': '2'}`: this machine has 1"),
        (FOUR_GPUS, [0, 4], "`lightning={'devices': [0, 4]}`: this machine has 4"),
        (FOUR_GPUS, 4, ""),
        (FOUR_GPUS, [3], ""),
        (FOUR_GPUS, "auto", ""),
        (FOUR_GPUS, -1, ""),
        (CPU, 8, ""),
        (Here(device_type="cuda", devices=1, is_distributed=True), 4, ""),
    ],
)
def test_more_devices_than_there_are(here: Here, devices: Any, text: str) -> None:
    told = found(here, lightning={"devices": devices})
    assert told.startswith(text)
    assert bool(told) == bool(text)


def test_any_number_of_processes_on_the_cpu_of_a_machine_with_gpus() -> None:
    assert found(ONE_GPU, device_type="cpu", lightning={"devices": 3}) == ""


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"ddp_backend": "nccl"}, ["`ddp_backend='nccl'`", "Give 'gloo'"]),
        (
            {"deepspeed": "zero.json"},
            ["`deepspeed='zero.json'`", '"lightning-hf-compat[deepspeed]"'],
        ),
        ({"fsdp": True, "fsdp_config": {"xla": True}}, ["pip install torch_xla"]),
        ({"fsdp": True, "fsdp_config": '{"xla": true}'}, ["pip install torch_xla"]),
        ({"lightning": {"accelerator": "gpu"}}, ["the device of this run is 'cpu'"]),
    ],
)
def test_what_a_machine_lacks(options: dict[str, Any], texts: list[str]) -> None:
    assert [text for text in texts if text not in found(CPU, **options)] == []
    everything = Here(device_type="cuda", devices=8, packages=frozenset({"deepspeed", "torch_xla"}))
    on_xla = Here(device_type="xla", packages=everything.packages)
    assert found(on_xla if "xla" in str(options) else everything, **options) == ""


XLA = Here(device_type="xla", packages=frozenset({"torch_xla"}))
SWITCHED_OFF = Here(device_type="cpu", packages=frozenset({"torch_xla"}))


@pytest.mark.parametrize(
    ("here", "device_type", "options", "text"),
    [
        (XLA, "cpu", {"use_cpu": True}, "`use_cpu=True`: where torch_xla is installed"),
        # HF's arguments have chosen the device by then.
        (XLA, "xla", {"use_cpu": True}, "the variable USE_TORCH_XLA=0 before Python starts"),
        (XLA, "cpu", {}, "`ACCELERATE_USE_CPU`: where torch_xla is installed"),
        (SWITCHED_OFF, "cpu", {"fsdp": True, "fsdp_config": {"xla": True}}, "Start without USE_TORCH_XLA=0"),
        (XLA, "xla", {"fsdp": True, "fsdp_config": {"xla": True}}, ""),
        (XLA, "xla", {"lightning": {"accelerator": "tpu"}}, ""),
        (SWITCHED_OFF, "tpu", {"lightning": {"accelerator": "tpu"}}, ""),
        (SWITCHED_OFF, "cpu", {"use_cpu": True}, ""),
    ],
)
def test_what_torch_xla_overrules(here: Here, device_type: str, options: dict[str, Any], text: str) -> None:
    told = found(here, device_type, **options)
    assert text in told
    assert bool(told) == bool(text)


def test_another_machine_is_not_this_one() -> None:
    options = {
        "deepspeed": {"bf16": {"enabled": "auto"}},
        "ddp_backend": "nccl",
        "lightning": {"devices": 64},
    }
    assert found(None, **options) == ""
    made = compat.plan({"output_dir": "out", **options}, accelerator="cuda")
    assert (made.strategy, made.flags["devices"]) == ("deepspeed", 64)


def test_all_is_told_at_once_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        compat.TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            ddp_backend="nccl",
            learning_rate=-1,
            lightning={"accelerator": "cuda", "devices": 2},
        )
    told = str(caught.value)
    for text in ("`ddp_backend='nccl'`", "`lightning={'accelerator': 'cuda'}`", "`learning_rate=-1`"):
        assert text in told


@pytest.mark.parametrize(
    ("device_type", "options", "texts"),
    [
        ("cpu", {"fsdp": ["no_shard"]}, ["`fsdp=['no_shard']`", "needs a GPU", "'shard_grad_op'"]),
        ("mps", {"fsdp": True, "fsdp_config": {"fsdp_version": "1"}}, ["`fsdp=True`", "needs a GPU"]),
        ("cpu", {"fsdp": "full_shard"}, []),
        ("cuda", {"fsdp": "hybrid_shard"}, []),
        ("xla", {"fsdp": True}, ["does not run on 'xla'", "fsdp_config={'xla': True}"]),
        ("tpu", {"fsdp": True}, []),
        ("xla", {"fsdp": True, "fsdp_config": {"xla": "true"}}, []),
    ],
)
def test_what_devices_cannot_shard(device_type: str, options: dict[str, Any], texts: list[str]) -> None:
    told = found(None, device_type, **options)
    assert [text for text in texts if text not in told] == []
    assert bool(told) == bool(texts)


@pytest.mark.parametrize(
    ("here", "options", "is_problem"),
    [
        (CPU, {"fsdp": True}, True),
        (CPU, {"fsdp": ["full_shard"], "fsdp_config": {"xla": True}}, False),
        (Here(is_distributed=True), {"fsdp": True}, False),
        (None, {"fsdp": True}, False),
        (CPU, {}, False),
    ],
)
def test_sharding_takes_several_processes(
    here: Here | None, options: dict[str, Any], is_problem: bool
) -> None:
    assert bool(list(one_process_problems(asked(**options), here))) == is_problem


@pytest.mark.parametrize(
    ("gpus", "told", "launched", "script", "processes"),
    [
        (4, False, False, True, 4),
        (4, False, False, False, None),
        (4, True, False, True, 1),
        (4, True, False, False, 1),
        (4, False, True, True, 1),
        (4, False, True, False, 1),
        (1, False, False, True, 1),
        (1, False, False, False, 1),
        (0, False, False, True, 1),
    ],
)
def test_processes_for_the_gpus_of_a_single_one(
    *, gpus: int, told: bool, launched: bool, script: bool, processes: int | None
) -> None:
    assert processes_for(gpus, is_told=told, is_launched=launched, has_script=script) == processes


@pytest.mark.parametrize(
    ("options", "has_script", "processes"),
    [
        ({}, True, 4),
        ({"lightning": {"devices": 1}}, True, 1),
        ({"lightning": {"devices": 2}}, True, 2),
        ({"lightning": {"devices": "auto"}}, True, 1),
        ({"use_cpu": True}, True, 1),
        ({"lightning": {"devices": 1}}, False, 1),
    ],
    ids=str,
)
def test_four_gpus_and_one_process(
    tmp_path: Path,
    options: dict[str, Any],
    *,
    has_script: bool,
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_for = []
    monkeypatch.setattr(Here, "look", lambda **_: FOUR_GPUS)
    monkeypatch.setattr(process, "has_script", lambda: has_script)
    monkeypatch.setattr(started, "start", lambda *numbers: asked_for.append(numbers))
    compat.TrainingArguments(str(tmp_path), report_to=[], **options)
    assert asked_for == [(processes, 1)]


def test_four_gpus_and_no_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "look", lambda **_: FOUR_GPUS)
    started.warn_of_idle.cache_clear()
    with pytest.warns(UserWarning, match="4 GPUs are there, and one is used"):
        compat.TrainingArguments(str(tmp_path), report_to=[])
    compat.TrainingArguments(str(tmp_path), report_to=[])  # it is said once
