from __future__ import annotations

import dataclasses
import json
import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import compat
from compat.arguments.names import native_defaults
from compat.arguments.resolve import resolve
from compat.errors import ArgumentError
from compat.translate import plan
from compat.upstream.choices import CHOICES
from compat.upstream.environment import Facts, contained

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, Any] = {"output_dir": "out", "report_to": [], "use_cpu": True}


def test_a_plan_takes_no_time() -> None:
    args = compat.TrainingArguments(**BASE, bf16=True, eval_strategy="epoch")
    native, facts, took = native_defaults(compat.TrainingArguments), Facts(), []
    for _ in range(50):
        start = time.perf_counter()
        plan(args, facts)
        middle = time.perf_counter()
        plan(resolve({**BASE, "bf16": True}, native, CHOICES), facts)
        took.append((middle - start, time.perf_counter() - middle))
    assert statistics.median(of_object for of_object, _ in took) < 0.005
    assert statistics.median(of_dict for _, of_dict in took) < 0.005


def test_arguments_of_either_library_and_a_dict() -> None:
    with contained():
        theirs = compat.plan(transformers.TrainingArguments(**BASE, bf16=True))
    ours = compat.plan(compat.TrainingArguments(**BASE, bf16=True))
    assert theirs.flags == ours.flags == compat.plan({**BASE, "bf16": True}).flags
    assert ours.precision == "bf16-mixed"


@pytest.mark.parametrize("options", [{}, {"evaluation_strategy": "epoch"}, {"predict_with_generate": True}])
def test_planning_changes_nothing(options: dict[str, Any]) -> None:
    given = {**BASE, **options}
    before = json.dumps(given)
    compat.plan(given, accelerator="cuda", devices=8)
    assert json.dumps(given) == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        args = compat.Seq2SeqTrainingArguments(**given)
    kept = args.to_dict()
    compat.plan(args)
    assert args.to_dict() == kept


@pytest.mark.parametrize(
    ("options", "where", "expected"),
    [
        ({}, {"accelerator": "cuda", "devices": 8}, ("ddp", "cuda", 8, 1)),
        ({}, {"accelerator": "gpu", "devices": 8, "num_nodes": 2}, ("ddp", "cuda", 8, 2)),
        ({}, {"accelerator": "gpu"}, ("single_device", "cuda", 1, 1)),
        ({"use_cpu": True}, {"accelerator": "gpu", "devices": 2}, ("ddp", "cpu", 2, 1)),
        ({"no_cuda": True}, {"accelerator": "gpu"}, ("single_device", "cpu", 1, 1)),
        ({"bf16": True}, {"accelerator": "cuda", "devices": 1}, ("single_device", "cuda", 1, 1)),
        ({"fsdp": True}, {"accelerator": "cuda", "devices": 2}, ("model_parallel", "cuda", 2, 1)),
        (
            {"fsdp": "full_shard", "fsdp_config": {"version": 1}},
            {"accelerator": "cuda", "devices": 2},
            ("fsdp", "cuda", 2, 1),
        ),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2}}},
            {"accelerator": "cuda", "devices": 2},
            ("deepspeed", "cuda", 2, 1),
        ),
        ({"fsdp": "hybrid_shard"}, {"accelerator": "cuda", "devices": 2}, ("fsdp", "cuda", 2, 1)),
        ({}, {"accelerator": "tpu", "devices": 8}, ("xla", "tpu", 8, 1)),
        ({}, {"accelerator": "tpu"}, ("single_xla", "tpu", 1, 1)),
        (
            {"fsdp": True, "fsdp_config": {"xla": True}},
            {"accelerator": "tpu", "devices": 8},
            ("xla", "tpu", 8, 1),
        ),
        ({"lightning": {"devices": 4}}, {"accelerator": "cuda"}, ("ddp", "cuda", 4, 1)),
        ({"lightning": {"strategy": "fsdp"}}, {"accelerator": "cuda", "devices": 2}, ("fsdp", "cuda", 2, 1)),
    ],
)
def test_plans_for_other_machines(
    options: dict[str, Any], where: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    made = compat.plan({"output_dir": "out", **options}, **where)
    flags = made.flags
    assert (made.strategy, flags["accelerator"], flags["devices"], flags["num_nodes"]) == expected
    assert json.loads(made.to_json())["strategy"]["name"] == made.strategy


def test_a_plan_of_what_accelerate_launch_starts(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "distributed_type: FSDP\nmixed_precision: bf16\nnum_machines: 2\nnum_processes: 16\nmachine_rank: 0\n"
        "main_process_ip: 10.0.0.1\nmain_process_port: 29500\n"
        "fsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false}\n"
    )
    given = {"output_dir": "out", "learning_rate": 1e-3}
    made = compat.plan(given, accelerate_config=file)
    assert (made.strategy, made.precision) == ("model_parallel", "bf16-mixed")
    flags = made.flags
    assert (flags["accelerator"], flags["devices"], flags["num_nodes"]) == ("cuda", 8, 2)
    assert made.strategy_options["reshard_after_forward"] is False
    whys = {setting.field: setting.note for setting in made.settings}
    assert whys["bf16"].endswith("`accelerate launch` asks for it: ACCELERATE_MIXED_PRECISION=bf16")
    other = compat.plan(given, accelerate_config=file, accelerator="cpu", devices=2, num_nodes=1).flags
    assert (other["accelerator"], other["devices"], other["num_nodes"]) == ("cpu", 2, 1)
    args = compat.TrainingArguments(**given, report_to=[], use_cpu=True)
    assert compat.plan(args, accelerate_config=file).strategy == "model_parallel"
    assert compat.plan(given, accelerator="cuda").strategy == "single_device"


def test_plans_compare_and_differ() -> None:
    one, same = compat.plan(BASE), compat.plan(dict(BASE))
    other = compat.plan({**BASE, "learning_rate": 0.5, "gradient_accumulation_steps": 2})
    assert one == same
    assert one.diff(same) == ()
    assert [difference.field for difference in one.diff(other)] == [
        "gradient_accumulation_steps",
        "learning_rate",
    ]
    assert str(one.diff(other)[1]).startswith("learning_rate: 5e-05 ")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.strategy = "ddp"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"learning_rate": "1e-4"}, "Give 0.0001"),
        ({"fsdp": True, "fsdp_config": {"version": 3}}, "there are versions 1 and 2"),
        ({"lightning": {"accelerator": "tpu"}}, "the device of this run is"),
        ({"lightning": {"accelerator": "tpu"}}, "pip install torch_xla"),
        ({"fsdp": "full_shard", "fsdp_config": "nowhere.json"}, "no such file"),
        ({"deepspeed": "nowhere.json"}, "no such file"),
        ({"fsdp": "no_shard"}, "version 1 of FSDP needs a GPU"),
    ],
)
def test_problems_are_errors(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        compat.plan({"output_dir": "out", **options})


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"accelerator": "cudda"}, "Did you mean `cuda`"),
        ({"accelerator": "qqq"}, "Give one of auto, cpu"),
        ({"devices": 0}, "`devices=0`"),
        ({"devices": -1}, "Give 1 or more"),
        ({"num_nodes": 0}, "`num_nodes=0`"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(where: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        compat.plan(BASE, **where)


@pytest.mark.parametrize(
    "options",
    [
        {"fsdp": "full_shard auto_wrap", "fsdp_config": {"fsdp_transformer_layer_cls_to_wrap": ["A"]}},
        {"fsdp": "full_shard", "fsdp_config": '{"fsdp_version": 1, "cpu_offload": true}'},
        {"fsdp": "full_shard", "fsdp_config": {"min_num_params": 7, "state_dict_type": "SHARDED_STATE_DICT"}},
        {"fsdp": ["shard_grad_op", "offload"]},
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        {"lightning": {"callbacks": [object()], "logger": object}},
        {"lr_scheduler_kwargs": {"a": {1, 2}}, "generation_config": object()},
    ],
)
def test_every_plan_is_plain_data(options: dict[str, Any]) -> None:
    made = compat.plan({"output_dir": "out", **options}, accelerator="cuda", devices=2)
    told = json.loads(made.to_json())
    assert told["provenance"]
    assert "object at 0x" not in made.to_json() + made.summary()
