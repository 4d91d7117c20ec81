from __future__ import annotations

import warnings
from typing import Any

import pytest
import transformers
from transformers import IntervalStrategy

import compat
from compat.arguments.fields import FIELDS, GENERATIONS
from compat.arguments.generations import ALONE, NEW, OLD, migrate
from compat.arguments.names import native_defaults
from compat.errors import ArgumentError

BASE: dict[str, Any] = {"output_dir": "out", "report_to": [], "use_cpu": True}
NATIVE = native_defaults(compat.TrainingArguments)
FOUR = transformers.__version__.startswith("4")

SAID: list[tuple[dict[str, Any], str, Any]] = [
    ({"evaluation_strategy": "epoch"}, "eval_strategy", "epoch"),
    ({"per_gpu_train_batch_size": 4}, "train_batch_size", 4),
    ({"per_gpu_eval_batch_size": 4}, "eval_batch_size", 4),
    ({"per_gpu_train_batch_size": 4, "per_device_train_batch_size": 2}, "train_batch_size", 4),
    ({"torchdynamo": "eager"}, "torch_compile_backend", "eager"),
    ({"torchdynamo": "eager"}, "torch_compile", True),
    ({"push_to_hub_token": "t"}, "hub_token", "t"),
    ({"no_cuda": True, "use_cpu": False}, "use_cpu", True),
    ({"no_cuda": False}, "use_cpu", True),
    ({"adafactor": True}, "optim", "adafactor"),
    ({"adafactor": False, "optim": "sgd"}, "optim", "sgd"),
    ({"include_inputs_for_metrics": True}, "include_for_metrics", ["inputs"]),
    (
        {"include_inputs_for_metrics": True, "include_for_metrics": ["loss"]},
        "include_for_metrics",
        ["loss", "inputs"],
    ),
    (
        {"tpu_metrics_debug": True, "debug": "underflow_overflow"},
        "debug",
        ["underflow_overflow", "tpu_metrics_debug"],
    ),
    ({"push_to_hub_model_id": "m", "push_to_hub_organization": "us"}, "hub_model_id", "us/m"),
    ({"push_to_hub_model_id": "me/m"}, "hub_model_id", "me/m"),
    ({"push_to_hub_organization": "us", "output_dir": "runs/one/"}, "hub_model_id", "us/one"),
    ({"activation_checkpointing": True}, "gradient_checkpointing", True),
    ({"activation_checkpointing_kwargs": {"a": 1}}, "gradient_checkpointing_kwargs", {"a": 1}),
    ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy", "sequential"),
    ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy", "group_by_length"),
    ({"report_to": None}, "report_to", None if FOUR else []),
    ({"fsdp": None}, "fsdp", [] if FOUR else None),
    ({"include_num_input_tokens_seen": "no"}, "include_num_input_tokens_seen", False if FOUR else "no"),
    ({"include_num_input_tokens_seen": "all"}, "include_num_input_tokens_seen", True if FOUR else "all"),
    ({"include_num_input_tokens_seen": "non_padding"}, "include_num_input_tokens_seen", "non_padding"),
]
"""Arguments → an attribute, and its value."""


def made(**options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return compat.TrainingArguments(**{**BASE, **options})


@pytest.mark.parametrize(("options", "name", "value"), SAID)
def test_what_a_name_says(options: dict[str, Any], name: str, value: Any) -> None:
    if name == "report_to" and value is None:
        value = made(report_to="all").report_to
    found = getattr(made(**options), name)
    assert [getattr(x, "value", x) for x in found] == value if isinstance(found, list) else found == value


@pytest.mark.parametrize(
    ("options", "warmup"),
    [
        ({"warmup_ratio": 0.1}, 20),
        ({"warmup_ratio": 1}, 200),
        ({"warmup_ratio": 1.0}, 200),
        ({"warmup_ratio": 0.0}, 0),
        ({"warmup_ratio": 0.1, "warmup_steps": 7}, 7),
        ({"warmup_steps": 0.1}, 20),
        ({"warmup_steps": 7}, 7),
        ({"warmup_steps": 7.0}, 7),
        ({"warmup_steps": 7.5}, 7),
    ],
)
def test_warmup_is_a_number_of_steps_or_a_part_of_the_run(options: dict[str, Any], warmup: int) -> None:
    assert made(**options).get_warmup_steps(200) == warmup


def test_entries_of_a_configuration() -> None:
    given = {"even_batches": False}
    args = made(split_batches=True, dispatch_batches=False, accelerator_config=given)
    config = args.accelerator_config
    assert (config.split_batches, config.dispatch_batches, config.even_batches) == (True, False, False)
    assert (args.split_batches, args.dispatch_batches) == (True, False)
    assert given == {"even_batches": False}
    assert made(split_batches=True, accelerator_config='{"even_batches": false}').accelerator_config == (
        made(split_batches=True, accelerator_config={"even_batches": False}).accelerator_config
    )


@pytest.mark.parametrize(
    ("old", "new", "value", "default", "other"),
    [
        ("evaluation_strategy", "eval_strategy", "epoch", "no", "steps"),
        ("torchdynamo", "torch_compile_backend", "eager", None, "inductor"),
        ("push_to_hub_token", "hub_token", "a", None, "b"),
    ],
)
def test_the_old_and_the_new_name_together(old: str, new: str, value: Any, default: Any, other: Any) -> None:
    assert getattr(made(**{old: value, new: value}), new) == value
    assert getattr(made(**{old: value, new: default}), new) == value
    assert getattr(made(**{old: default, new: value}), new) == value
    if old in NATIVE:
        # A release that has both takes the old one.
        assert getattr(made(**{old: value, new: other}), new) == value
        return
    with pytest.raises(ArgumentError) as caught:
        made(**{old: value, new: other})
    (line,) = str(caught.value).splitlines()
    assert f"`{old}=" in line
    assert f"`{new}=" in line
    assert line.endswith("Give one of them.")


def test_enumerations_and_their_values_agree() -> None:
    assert made(evaluation_strategy=IntervalStrategy.EPOCH, eval_strategy="epoch").eval_strategy == "epoch"


@pytest.mark.parametrize(
    "options",
    [
        {"dispatch_batches": True, "accelerator_config": "file.json"},
        {"split_batches": True, "accelerator_config": "a"},
    ],
)
def test_an_entry_cannot_go_into_a_file(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="Write the entry into that file"):
        made(**options)


@pytest.mark.skipif(not FOUR, reason="5 has that sampler")
def test_what_four_cannot_do_is_refused() -> None:
    with pytest.raises(ArgumentError, match="Update transformers"):
        made(train_sampling_strategy="batch_rebalance")


def test_every_old_name_has_one_way_and_every_new_one_at_most_one() -> None:
    old = {name for name, field in FIELDS.items() if field.is_old}
    assert old == OLD.keys() | ALONE.keys()
    assert not OLD.keys() & ALONE.keys()
    assert {FIELDS[name].since for name in NEW} == {GENERATIONS[-1]}


@pytest.mark.parametrize("migration", [*OLD.values(), *NEW.values()], ids=lambda migration: migration.name)
def test_a_name_is_read_as_it_was_written(migration: Any) -> None:
    field = FIELDS[migration.name]
    value = {"bool": True, "int": 3, "float": 0.5, "dict": {"a": 1}}.get(
        field.kind.rstrip("?"), "group_by_length"
    )
    values: dict[str, Any] = {}
    migration.write(values, value, {migration.name: value})
    expected = field.default if migration.name == "push_to_hub_organization" else value
    assert migration.read(values) == (value if expected is None else expected)
    assert values.keys() <= {migration.says, "train_sampling_strategy"}


def test_nothing_given_is_nothing_migrated() -> None:
    values = dict(NATIVE)
    found = migrate(values, NATIVE)
    assert (found.given, found.old, found.problems) == ({}, (), ())
    expected = {**NATIVE, "report_to": values["report_to"]}
    assert values == expected
