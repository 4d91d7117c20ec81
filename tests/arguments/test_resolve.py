"""Plans of dicts against plans of live objects, and both against HF's own class."""

from __future__ import annotations

import copy
import math
import random
import sys
import warnings
from typing import Any

import pytest
import transformers

import compat
from compat.arguments.fields import FIELDS
from compat.arguments.names import native_defaults
from compat.arguments.resolve import resolve
from compat.errors import ArgumentError
from compat.translate import plan
from compat.translate.planner import FILLED_IN, MIRRORS
from compat.upstream.choices import CHOICES
from compat.upstream.environment import Facts, contained
from tests.conformance.test_arguments import ALONG, NOT_HERE, unlike

KIND = compat.Seq2SeqTrainingArguments
BASE: dict[str, Any] = {"output_dir": "out", "use_cpu": True}

FILLED = {
    "accelerator_config": "HF makes an object of it, with what is not given",
    "disable_tqdm": "the verbosity of transformers' logs decides where None",
    "fsdp": "True, text and a list of enums mean the same",
    "fsdp_config": "HF fills it with what is not given",
    "local_rank": "the launcher decides",
    "logging_dir": "transformers 4 puts the time and the name of the machine into it",
    "report_to": "transformers 4 looks for what is installed where None",
    "run_name": "transformers 4 takes it from `output_dir`",
    "half_precision_backend": "transformers 4 takes it from `fp16_backend`; neither does anything",
}
"""Arguments that HF's class fills in with what depends on the process or says the same, and how."""

TOLD = {*FILLED_IN, *MIRRORS, "metric_for_best_model", "report_to"}
"""Arguments of which only a plan of a dict can tell that they were given."""

ALONE = [{**ALONG.get(name, {}), name: unlike(name)} for name in FIELDS if name not in NOT_HERE]

CHOSEN: dict[str, list[Any]] = {
    "learning_rate": [0, 1e-4],
    "max_steps": [-1, 0, 7, 10.0],
    "num_train_epochs": [0.5, 1, 2.5],
    "gradient_accumulation_steps": [1, 3],
    "max_grad_norm": [0, 0.5, None, -1],
    "bf16": [True, False],
    "warmup_ratio": [0.0, 0.1],
    "warmup_steps": [0, 5],
    "evaluation_strategy": ["no", "epoch", "steps"],
    "logging_steps": [1, 10, 0.5],
    "logging_strategy": ["no", "epoch", "steps"],
    "save_strategy": ["no", "epoch", "steps", "best"],
    "metric_for_best_model": [None, "loss", "accuracy"],
    "lr_scheduler_type": ["linear", "cosine"],
    "optim": ["sgd", "adamw_torch"],
    "adafactor": [False, True],
    "group_by_length": [True, False],
    "gradient_checkpointing": [None, True, False],
    "report_to": ["none", [], ["tensorboard"], "tensorboard"],
    "torch_compile": [True, False],
    "include_num_input_tokens_seen": [True, "no", "all"],
    "debug": ["", "underflow_overflow"],
    "lightning": [None, {}, {"profiler": "simple"}, {"max_epochs": 2, "precision": "32-true"}],
    "per_gpu_train_batch_size": [None, 4],
    "per_device_train_batch_size": [2, 8],
    "split_batches": [True, False],
    "hub_token": ["t", None],
}


def combinations(count: int) -> list[dict[str, Any]]:
    generator = random.Random(20)  # noqa: S311 (the same numbers each time)
    return [
        {name: generator.choice(CHOSEN[name]) for name in generator.sample(sorted(CHOSEN), 8)}
        for _ in range(count)
    ]


def live(**options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KIND(**{**BASE, **copy.deepcopy(options)})


def resolved(**options: Any) -> Any:
    return resolve(copy.deepcopy({**BASE, **options}), native_defaults(KIND), CHOICES)


def essence(made: Any) -> dict[str, Any]:
    return {
        setting.field or setting.target: (setting.value, setting.kind, setting.note, told(setting))
        for setting in made.settings
        if setting.field.partition(".")[0] not in FILLED
    }


def told(setting: Any) -> bool:
    return setting.changed and setting.field not in TOLD


@pytest.mark.parametrize("options", [*ALONE, *combinations(100)], ids=",".join)
def test_a_plan_of_a_dict_is_that_of_the_object(options: dict[str, Any]) -> None:
    facts = Facts()
    of_dict, of_object = plan(resolved(**options), facts), plan(live(**options), facts)
    assert essence(of_dict) == essence(of_object)
    assert of_dict.flags == of_object.flags
    assert (of_dict.strategy, of_dict.precision) == (of_object.strategy, of_object.precision)
    if options.get("report_to") is not None:
        assert of_dict.loggers == of_object.loggers


@pytest.mark.parametrize("options", combinations(40), ids=",".join)
def test_the_flags_say_what_transformers_says(options: dict[str, Any]) -> None:
    theirs = of_transformers({name: value for name, value in options.items() if name != "lightning"})
    options.pop("lightning", None)
    flags = compat.plan({**BASE, **options}).flags
    assert flags["max_steps"] == (theirs.max_steps if theirs.max_steps > 0 else -1)
    assert flags["max_epochs"] == (
        sys.maxsize if theirs.max_steps > 0 else math.ceil(theirs.num_train_epochs)
    )
    assert flags["accumulate_grad_batches"] == theirs.gradient_accumulation_steps
    assert flags["gradient_clip_val"] == (theirs.max_grad_norm or 0.0)
    assert flags["precision"] == ("bf16-mixed" if theirs.bf16 else "32-true")
    assert (flags["accelerator"], flags["devices"]) == (theirs.device.type, theirs.world_size)


def of_transformers(options: dict[str, Any]) -> Any:
    known = {
        name: value
        for name, value in options.items()
        if name in transformers.TrainingArguments.__dataclass_fields__
    }
    if "eval_strategy" not in known and "evaluation_strategy" in options:
        known["eval_strategy"] = options["evaluation_strategy"]
    with contained(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.TrainingArguments(**copy.deepcopy({**BASE, **known}))


@pytest.mark.parametrize("options", combinations(40), ids=",".join)
def test_attributes_are_those_of_the_object(options: dict[str, Any]) -> None:
    of_dict, of_object = resolved(**options), live(**options)
    # Entries of configurations are dicts here and objects there.
    apart = {"accelerator_config", "lr_scheduler_kwargs", "eval_steps", *FILLED}
    for name in native_defaults(KIND):
        if name not in apart and not name.startswith("_"):
            expected = getattr(of_object, name)
            if isinstance(expected, list):
                expected = [getattr(item, "value", item) for item in expected]
            assert getattr(of_dict, name) == expected, name


def test_what_was_given_is_told_from_what_was_derived() -> None:
    made = resolved(learning_rate=0.5, evaluation_strategy="epoch")
    assert made.typed == {"output_dir", "use_cpu", "learning_rate", "evaluation_strategy"}
    assert made.given_otherwise == {"evaluation_strategy": "epoch"}
    changed = {setting.field for setting in plan(made, Facts()).changed()}
    derived = {"eval_strategy", "dataloader_pin_memory"}
    assert changed == {"output_dir", "use_cpu", "learning_rate", "evaluation_strategy", *derived}


def test_what_is_given_is_left_alone() -> None:
    given = {
        "output_dir": "out",
        "lightning": {"max_steps": 3},
        "fsdp_config": {"fsdp_version": 2},
        "split_batches": True,
    }
    before = copy.deepcopy(given)
    resolve(given, native_defaults(KIND), CHOICES)
    assert given == before


def test_every_problem_comes_at_once() -> None:
    with pytest.raises(ArgumentError) as caught:
        resolved(learning_rate=-1, warmup_ratio=2, lightning={"min_steps": 1}, eval_strategy="nope")
    assert len(str(caught.value).splitlines()) == 4


def test_facts_are_what_a_plan_reads() -> None:
    facts = Facts(device_type="cuda", devices=4, num_nodes=2)
    flags = plan(resolved(use_cpu=False), facts).flags
    assert (flags["accelerator"], flags["devices"], flags["num_nodes"]) == ("cuda", 4, 2)
