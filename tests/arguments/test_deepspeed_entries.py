from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

import compat
from compat.arguments.deepspeed_entries import AUTO, FILLED, FILLED_LATER, config_of, leaves, problems
from compat.errors import ArgumentError
from tests.small import arguments

if TYPE_CHECKING:
    from pathlib import Path


class Theirs(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """What transformers makes of a configuration, also where DeepSpeed is not installed."""

    def __init__(self, config: dict[str, Any]) -> None:
        HfDeepSpeedConfig.__init__(self, config)
        self._dtype, self.mismatches = None, []


VALUES = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "max_grad_norm": 0.5,
    "learning_rate": 1e-3,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-7,
    "weight_decay": 0.1,
    "bf16": True,
    "fp16": False,
}


def nested(entries: dict[str, Any]) -> dict[str, Any]:
    """A configuration from its entries with dots."""
    config: dict[str, Any] = {}
    for path, value in entries.items():
        *above, last = path.split(".")
        inner = config
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return config


def found(config: Any, processes: int | None = None, **values: Any) -> list[str]:
    return list(problems({**VALUES, "deepspeed": config, **values}, processes))


def test_every_form_is_read(tmp_path: Path) -> None:
    config = {"zero_optimization": {"stage": 2}}
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(config))
    coded = base64.urlsafe_b64encode(json.dumps(config).encode()).decode()
    for given in (config, str(file), json.dumps(config), coded):
        assert config_of(given) == config
        assert found(given) == []


def test_what_is_filled_in_is_what_transformers_fills_in(tmp_path: Path) -> None:
    args = arguments(tmp_path, **VALUES)
    theirs = Theirs(nested(dict.fromkeys(FILLED, AUTO)))
    theirs.trainer_config_process(args)
    filled = dict(leaves(theirs.config))
    assert {path: filled[path] for path in FILLED} == {path: f.of(vars(args)) for path, f in FILLED.items()}
    # What it leaves for later is told to be filled in later.
    later = Theirs(nested(dict.fromkeys(FILLED_LATER, AUTO)))
    later.trainer_config_process(args)
    now = {path for path, value in leaves(later.config) if value != AUTO}
    assert now == {"train_batch_size", "scheduler.params.warmup_min_lr"}
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=4))
    later.set_stage_and_offload()
    later.trainer_config_finalize(args, model, 10)
    left = {path for path, value in leaves(later.config) if value == AUTO}
    assert left <= {path for path in FILLED_LATER if "stage3" in path}


DIFFERENT = {
    path: True if path == "fp16.enabled" else False if path == "bf16.enabled" else [9] for path in FILLED
}


@pytest.mark.parametrize("path", FILLED)
def test_what_contradicts_the_arguments_is_what_transformers_finds(tmp_path: Path, path: str) -> None:
    args = arguments(tmp_path, **VALUES)
    for value, differs in ((DIFFERENT[path], True), (FILLED[path].of(vars(args)), False), (AUTO, False)):
        config = nested({path: value})
        theirs = Theirs(config)
        theirs.trainer_config_process(args)
        told = found(config)
        assert bool(theirs.mismatches) == bool(told) == differs
        if differs:
            assert f"`deepspeed`'s {path}={value!r}" in told[0]
            assert all(f"`{field}=" in told[0] for field in FILLED[path].fields)


def test_batches() -> None:
    assert found({"train_batch_size": 12}, 2) == []
    assert found({"train_batch_size": 12}) == []
    (told,) = found({"train_batch_size": 12}, 4)
    assert "train_batch_size=12" in told
    assert "with 4 processes it is 24" in told
    assert (
        found({"train_batch_size": 7, "train_micro_batch_size_per_gpu": 9}, 2, auto_find_batch_size=True)
        == []
    )


def test_zero_3_and_a_batch_size_to_find() -> None:
    for stage, count in ((2, 0), (3, 1)):
        told = found({"zero_optimization": {"stage": stage}}, auto_find_batch_size=True)
        assert len(told) == count


@pytest.mark.parametrize(
    ("config", "text"),
    [("nowhere.json", "no such file"), ("[1]", "no such file"), ("eyJhIjog", "no such file")],
)
def test_what_cannot_be_read(config: str, text: str) -> None:
    (told,) = found(config)
    assert told.startswith(f"`deepspeed={config!r}`: {text}")


def test_all_is_told_at_once_when_the_arguments_are_made(tmp_path: Path) -> None:
    config = {"gradient_accumulation_steps": 4, "gradient_clipping": 0.1, "bf16": {"enabled": True}}
    with pytest.raises(ArgumentError) as caught:
        compat.TrainingArguments(str(tmp_path), use_cpu=True, deepspeed=config)
    told = [line for line in str(caught.value).splitlines() if "HF refuses that they differ" in line]
    assert [line.split("=")[0] for line in told] == [
        "`gradient_accumulation_steps",
        "`max_grad_norm",
        "`bf16",
    ]
