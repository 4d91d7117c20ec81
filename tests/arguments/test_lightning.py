from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import StrategyRegistry

import compat
from compat.arguments.fields import FIELDS
from compat.arguments.lightning import FLAGS, PRECISIONS, STRATEGIES, Handling, limit, problems, say
from compat.errors import ArgumentError

BASE: dict[str, Any] = {"output_dir": "out", "report_to": [], "use_cpu": True}


def test_every_flag_of_lightning_is_in_the_table() -> None:
    of_lightning = {name for name, flag in FLAGS.items() if flag.handling is not Handling.OURS}
    assert of_lightning == set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert set(FLAGS) - of_lightning == {"preemption", "replay_data", "save_async"}


@pytest.mark.parametrize("flag", FLAGS.values(), ids=lambda flag: flag.name)
def test_a_flag_has_what_its_fate_needs(flag: Any) -> None:
    assert (flag.says in FIELDS) == (flag.handling is Handling.SAID)
    assert flag.note or flag.handling is not Handling.REFUSED
    if flag.handling is Handling.OURS:
        assert flag.note
        return
    default = inspect.signature(pl.Trainer.__init__).parameters[flag.name].default
    refused = list(problems({flag.name: default}))
    assert refused == [] or default not in {None, False}


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ({"max_epochs": 2}, "num_train_epochs", 2),
        ({"max_steps": 7}, "max_steps", 7),
        ({"accumulate_grad_batches": 3}, "gradient_accumulation_steps", 3),
        ({"gradient_clip_val": 0.5}, "max_grad_norm", 0.5),
        ({"gradient_clip_val": None}, "max_grad_norm", 1.0),
        ({"log_every_n_steps": 7}, "logging_steps", 7),
        ({"precision": "bf16-mixed"}, "bf16", True),
        ({"precision": 32}, "bf16", False),
        ({"accelerator": "cpu"}, "use_cpu", True),
        ({"enable_progress_bar": False}, "disable_tqdm", True),
        ({"overfit_batches": 2}, "train_sampling_strategy", "sequential"),
        ({"fast_dev_run": True}, "max_steps", 1),
        ({"fast_dev_run": 3}, "max_steps", 3),
        ({"fast_dev_run": True}, "save_strategy", "no"),
        ({"fast_dev_run": False}, "max_steps", -1),
    ],
)
def test_what_a_flag_says_wins(flags: dict[str, Any], name: str, value: Any) -> None:
    opposite = {"bf16": True} if "precision" in flags else {}
    args = compat.TrainingArguments(**{**BASE, **opposite}, lightning=flags)
    assert getattr(args, name) == value
    assert args.to_dict()["lightning"] == flags


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"val_check_interval": 0.5}, "eval_steps"),
        ({"enable_checkpointing": True}, "save_strategy"),
        ({"gradient_clip_algorithm": "value"}, "max_grad_norm"),
        ({"num_sanity_val_steps": 2}, "eval_on_start"),
        ({"precision": "64-true"}, "bf16-mixed, 16-mixed, 32-true"),
        ({"min_steps": 1}, "should_training_stop"),
        ({"strategy": "deepspeed_stage_4"}, "Did you mean `deepspeed_stage_3`?"),
        ({"strategy": "horovod"}, "Give one by its name. The names are auto, single_device, ddp, "),
        ({"strategy": ["ddp"]}, "Give one by its name. The names are auto, single_device, ddp, "),
    ],
)
def test_what_contradicts_is_refused_with_a_way_out(flags: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        compat.TrainingArguments(**BASE, lightning=flags)
    (name,) = flags
    assert f"`lightning={{{name!r}: " in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize("flags", [None, {}, "{}", "null", '{"profiler": "simple"}'])
def test_flags_may_be_text_or_nothing(flags: Any) -> None:
    args = compat.TrainingArguments(**BASE, lightning=flags)
    assert args.lightning in (None, {}, {"profiler": "simple"})


def test_saying_changes_nothing_that_is_not_said() -> None:
    values = {"max_steps": 5, "bf16": True}
    say({"profiler": "simple", "max_steps": None, "nonsense": 1}, values)
    assert values == {"max_steps": 5, "bf16": True}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_are_one_or_none(precision: str) -> None:
    assert sum(PRECISIONS[precision].values()) == (not precision.startswith("32"))


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        ({}, "limit_train_batches", None),
        ({"limit_train_batches": 3}, "limit_train_batches", 3),
        ({"overfit_batches": 2}, "limit_train_batches", 2),
        ({"overfit_batches": 0.5}, "limit_val_batches", 0.5),
        ({"overfit_batches": 2}, "limit_predict_batches", None),
        ({"fast_dev_run": True}, "limit_val_batches", 1),
        ({"fast_dev_run": True}, "limit_train_batches", None),
    ],
)
def test_limits(flags: dict[str, Any], name: str, expected: Any) -> None:
    assert limit(flags, name) == expected


def test_the_names_of_strategies_are_those_that_lightning_knows() -> None:
    known = {*StrategyRegistry.available_strategies(), "auto", "model_parallel"}
    assert set(STRATEGIES) <= known


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("auto", {}),
        ("ddp", {}),
        ("ddp_find_unused_parameters_true", {"ddp_find_unused_parameters": True}),
        ("fsdp", {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 1}}),
        ("model_parallel", {"fsdp": "full_shard auto_wrap"}),
    ],
)
def test_the_name_of_a_strategy_says_the_arguments_that_choose_it(name: str, said: dict[str, Any]) -> None:
    values: dict[str, Any] = {}
    say({"strategy": name}, values)
    assert values == said


@pytest.mark.parametrize("stage", [2, 3])
def test_the_name_of_a_strategy_says_a_stage_of_deepspeed(stage: int) -> None:
    values: dict[str, Any] = {}
    say({"strategy": f"deepspeed_stage_{stage}_offload"}, values)
    zero = values["deepspeed"]["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]) == (stage, {"device": "cpu"})
    assert values["deepspeed"]["train_micro_batch_size_per_gpu"] == "auto"
    assert values["deepspeed"]["bf16"] == {"enabled": "auto"}


def test_what_an_argument_says_of_its_strategy_stays() -> None:
    values: dict[str, Any] = {
        "fsdp": "shard_grad_op",
        "fsdp_config": {"min_num_params": 5},
        "deepspeed": "a.json",
    }
    say({"strategy": "fsdp"}, values)
    say({"strategy": "deepspeed_stage_3"}, values)
    assert values["fsdp"] == "shard_grad_op"
    assert values["fsdp_config"] == {"version": 1, "min_num_params": 5}
    assert values["deepspeed"] == "a.json"
