from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from compat.errors import ArgumentError
from compat.upstream.accelerate_config import read_accelerate_config

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "mixed_precision": "bf16",
    "num_machines": 2,
    "num_processes": 8,
    "machine_rank": 0,
    "main_process_ip": "10.0.0.1",
    "main_process_port": 29500,
    "use_cpu": False,
}


def written(folder: Path, name: str = "config.yaml", **entries: Any) -> Path:
    path = folder / name
    text = {**BASE, **entries}
    path.write_text(json.dumps(text) if name.endswith("json") else yaml.safe_dump(text))
    return path


@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
def test_what_is_started(tmp_path: Path, name: str) -> None:
    launch = read_accelerate_config(written(tmp_path, name))
    assert (launch.device_type, launch.devices, launch.num_nodes) == ("cuda", 4, 2)
    assert launch.variables["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert "ACCELERATE_USE_FSDP" not in launch.variables


@pytest.mark.parametrize(
    ("entries", "variables"),
    [
        (
            {
                "distributed_type": "FSDP",
                "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": False},
            },
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"},
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}, "num_machines": 1},
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,mixed_precision",
            },
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": "z.json"}},
            {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "z.json"},
        ),
        (
            {
                "distributed_type": "FSDP",
                "fsdp_config": {"fsdp_version": 2},
                "parallelism_config": {"parallelism_config_tp_size": 4},
            },
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "4"},
        ),
        (
            {"dynamo_config": {"dynamo_backend": "INDUCTOR", "dynamo_mode": "max-autotune"}},
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "max-autotune"},
        ),
        ({"distributed_type": "MEGATRON_LM"}, {"ACCELERATE_USE_MEGATRON_LM": "true"}),
    ],
)
def test_what_the_script_is_told(
    tmp_path: Path, entries: dict[str, Any], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What this process was told itself is no part of the file.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    before = dict(os.environ)
    told = read_accelerate_config(written(tmp_path, **entries)).variables
    assert {name: told[name] for name in variables} == variables
    assert told.get("ACCELERATE_DYNAMO_BACKEND") != "EAGER"
    assert "ACCELERATE_USE_CPU" not in told
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("entries", "device_type", "devices"),
    [
        ({"distributed_type": "NO", "num_processes": 1, "num_machines": 1}, None, 1),
        ({"distributed_type": "NO", "num_processes": 1, "num_machines": 1, "use_cpu": True}, "cpu", 1),
        ({"distributed_type": "MULTI_CPU"}, "cpu", 4),
        ({"distributed_type": "XLA", "num_machines": 1}, "tpu", 8),
    ],
)
def test_devices(tmp_path: Path, entries: dict[str, Any], device_type: str | None, devices: int) -> None:
    launch = read_accelerate_config(written(tmp_path, **entries))
    assert (launch.device_type, launch.devices) == (device_type, devices)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("learning_rate: 1\n", "A `distributed_type` must be specified"),
        ("distributed_type: MULTI_GPU\nlearning_rate: 1\n", "unknown keys"),
        ("distributed_type: SIDEWAYS\n", "SIDEWAYS"),
        ("- a\n- b\n", "not a configuration"),
        ("{", "not a configuration"),
        ("distributed_type: MULTI_GPU\n", "pass in `--num_processes`"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArgumentError, match=words) as caught:
        read_accelerate_config(path)
    assert str(path) in str(caught.value)
