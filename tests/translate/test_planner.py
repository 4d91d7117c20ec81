from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import compat
from compat.errors import ArgumentError
from compat.translate import RULES, Kind, plan
from compat.upstream.environment import Facts
from tests.small import arguments

if TYPE_CHECKING:
    from pathlib import Path

CPU = Facts()


def test_every_field_of_the_installed_release_has_one_rule() -> None:
    fields = {field.name for field in dataclasses.fields(transformers.Seq2SeqTrainingArguments)}
    # Names that start with an underscore are transformers' own bookkeeping.
    missing = {name for name in fields if not name.startswith("_")} - set(RULES)
    assert missing == set()


@dataclasses.dataclass
class LibraryArguments(compat.TrainingArguments):
    packing: bool = False
    max_length: int = 512
    api_key: str | None = None
    other_key: str | None = None
    shape: Any = None
    filled_in: int | None = 0
    later: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.filled_in = None


def test_arguments_that_a_library_adds_are_told_and_left_to_it(tmp_path: Path) -> None:
    given = LibraryArguments(str(tmp_path), packing=True, api_key="s3cret", shape=torch.ones(2), use_cpu=True)
    made = plan(given, CPU)
    assert "s3cret" not in made.summary() + made.to_json()
    found = {
        setting.field: (setting.value, setting.outcome, setting.changed)
        for setting in made.settings
        if setting.kind is Kind.LIBRARY
    }
    assert found == {
        "packing": (True, "the own code of LibraryArguments", True),
        "max_length": (512, "the own code of LibraryArguments", False),
        "api_key": ("<secret>", "the own code of LibraryArguments", True),
        "other_key": (None, "the own code of LibraryArguments", False),
        "shape": ("tensor([1., 1.])", "the own code of LibraryArguments", True),
        "filled_in": (None, "the own code of LibraryArguments", False),
    }
    assert not [s for s in plan(arguments(tmp_path), CPU).settings if s.kind is Kind.LIBRARY]


@pytest.mark.parametrize(
    ("options", "flag", "value"),
    [
        ({"gradient_accumulation_steps": 4}, "accumulate_grad_batches", 4),
        ({"max_grad_norm": 0.5}, "gradient_clip_val", 0.5),
        ({"max_grad_norm": 0.0}, "gradient_clip_val", 0.0),
        ({"max_steps": 7}, "max_steps", 7),
        ({"max_steps": 7}, "max_epochs", sys.maxsize),
        ({"max_steps": -1, "num_train_epochs": 1.5}, "max_epochs", 2),
        ({"bf16": True}, "precision", "bf16-mixed"),
        ({}, "precision", "32-true"),
        ({}, "accelerator", "cpu"),
    ],
)
def test_flags(tmp_path: Path, options: dict[str, Any], flag: str, value: Any) -> None:
    assert plan(arguments(tmp_path, **options), CPU).flags[flag] == value


def test_the_flags_are_those_of_the_live_trainer(tmp_path: Path) -> None:
    from tests.small import trainer

    live = trainer(tmp_path, gradient_accumulation_steps=3, max_grad_norm=0.25, bf16=True)
    assert live.lightning.accumulate_grad_batches == 3
    assert live.lightning.gradient_clip_val == 0.25
    assert live.lightning.precision == "bf16-mixed"
    assert live.plan.flags["accumulate_grad_batches"] == 3


def test_conflicts_are_reported_together_before_anything_is_built(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args.deepspeed, args.fsdp = "zero.json", "full_shard"
    args.save_only_model = args.load_best_model_at_end = True
    with pytest.raises(ArgumentError) as caught:
        plan(args, Facts(world_size=2))
    both, file, best = str(caught.value).splitlines()
    assert both.startswith("`fsdp='full_shard'` and `deepspeed='zero.json'`: both shard the model")
    assert file.startswith("`deepspeed='zero.json'`: no such file")
    assert best.startswith("`save_only_model=True` and `load_best_model_at_end=True` with `fsdp`")


def test_summary_names_what_was_changed_and_nothing_else(tmp_path: Path) -> None:
    text = plan(arguments(tmp_path, learning_rate=0.5, gradient_accumulation_steps=2), CPU).summary()
    assert "Trainer(accumulate_grad_batches=2)" in text
    assert "learning_rate=0.5" in text
    assert "weight_decay" not in text


def test_nothing_is_called_changed_that_was_not_given(tmp_path: Path) -> None:
    args = compat.TrainingArguments(output_dir=str(tmp_path), eval_strategy="epoch", fp16_full_eval=False)
    changed = {setting.field for setting in plan(args, CPU).changed()}
    assert changed == {"eval_strategy"}


def test_secrets_stay_out(tmp_path: Path) -> None:
    made = plan(arguments(tmp_path, hub_token="s3cret"), CPU)  # noqa: S106
    assert "s3cret" not in made.to_json() + made.summary() + repr(made)


def test_a_plan_is_plain_data(tmp_path: Path) -> None:
    made = plan(arguments(tmp_path), CPU)
    plain = json.loads(made.to_json())
    origin = {entry["field"]: entry for entry in plain["provenance"]}
    assert origin["learning_rate"]["kind"] == Kind.MODULE.value
    assert plain["trainer"]["max_steps"] == 3
    assert plain["strategy"] == {"name": "single_device", "options": {}}
    assert made == plan(arguments(tmp_path), CPU)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.settings = ()  # type: ignore[misc]


def test_translation_loads_neither_torch_nor_lightning() -> None:
    code = "import sys, compat.translate; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_several_processes_are_ddp(tmp_path: Path) -> None:
    made = plan(arguments(tmp_path, ddp_bucket_cap_mb=7), Facts(world_size=4, devices=2, num_nodes=2))
    assert (made.strategy, made.flags["devices"], made.flags["num_nodes"]) == ("ddp", 2, 2)
    assert made.strategy_options == {"find_unused_parameters": True, "bucket_cap_mb": 7, "timeout": 1800}
