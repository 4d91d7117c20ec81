"""Names, defaults and methods of the training arguments of three generations, as data, against ours."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import warnings
from enum import Enum
from typing import Any

import pytest
import transformers

import compat
from compat.arguments.fields import FIELDS
from compat.arguments.fields import GENERATIONS as LINES
from compat.upstream.environment import contained
from tests.conformance.test_trainer import GENERATIONS, accepted, parameters, surface

CLASSES = ("TrainingArguments", "Seq2SeqTrainingArguments")
ALL = [(generation, name) for generation in GENERATIONS for name in CLASSES]
OF_LINE = dict(zip(LINES, GENERATIONS, strict=True))
FOR_NAMES = {"output_dir": "out", "report_to": [], "use_cpu": True}

EMPTY = {"list": [], "dict": {}}
"""What a factory in a surface makes."""

UNLIKE = {
    "accelerator_config": {"split_batches": True},
    "debug": "underflow_overflow",
    "eval_strategy": "epoch",
    "evaluation_strategy": "epoch",
    "fp16_backend": "cpu_amp",
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 1},
    "generation_config": "folder",
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "greater_is_better": True,
    "half_precision_backend": "cpu_amp",
    "hub_strategy": "end",
    "include_for_metrics": ["loss"],
    "include_num_input_tokens_seen": True,
    "label_smoothing_factor": 0.5,
    "log_level": "info",
    "log_level_replica": "info",
    "logging_strategy": "epoch",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "lr_scheduler_type": "cosine",
    "optim": "sgd",
    "report_to": "tensorboard",
    "save_strategy": "epoch",
    "tf32": False,
    "torch_compile_backend": "eager",
    "torchdynamo": "eager",
    "train_sampling_strategy": "group_by_length",
    "trackio_static_space_id": "space",
    "warmup_ratio": 0.25,
    "warmup_steps": 7,
}
"""Values other than the default, where the type alone does not yield one."""

FOR_THE_HUB_OR_A_MAC = frozenset({"push_to_hub_model_id", "push_to_hub_organization", "use_mps_device"})
"""Arguments that transformers 4 itself takes only there."""

TYPE = re.compile(r"^Optional\[(.*)\]$")
BY_KIND = {"bool": True, "int": 3, "float": 0.5, "str": "text", "list": ["x"], "dict": {"rope": True}}

ALONG = {
    "dataloader_persistent_workers": {"dataloader_num_workers": 1},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {"dataloader_num_workers": 1},
    "load_best_model_at_end": {"save_strategy": "best", "metric_for_best_model": "loss"},
    "fsdp_config": {"fsdp": "full_shard auto_wrap"},
    "fsdp_min_num_params": {"fsdp": "full_shard auto_wrap"},
    "fsdp_transformer_layer_cls_to_wrap": {"fsdp": "full_shard auto_wrap"},
}
"""What an argument needs beside it."""

NOT_HERE = {
    "ddp_backend": "transformers asks for a process group",
    "deepspeed": "it is not installed",
    "parallelism_config": "takes an object of accelerate's",
}
"""Arguments that have no other value in a single process."""


def fields(generation: str, name: str) -> dict[str, Any]:
    """Argument → default of a class of a generation; an inherited one is not among those of `Seq2Seq…`."""
    return {
        field["name"]: default(field["default"], generation) for field in surface(generation, name)["fields"]
    }


def default(text: str | None, generation: str) -> Any:
    if text is None:
        return None
    if text == "default_optim":
        return "adamw_torch_fused" if generation.startswith("5") else "adamw_torch"
    _, colon, factory = text.partition("factory: ")
    return EMPTY[factory] if colon else ast.literal_eval(text)


def unlike(name: str) -> Any:
    """A value other than the default, of the right type."""
    if name in UNLIKE:
        return UNLIKE[name]
    kind = FIELDS[name].kind.rstrip("?")
    return not FIELDS[name].default if kind == "bool" else BY_KIND[kind]


def made(name: str, **options: Any) -> Any:
    """Ours of that class, with what transformers itself says of it left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(compat, name)(**{**FOR_NAMES, **options})


def plain(value: Any) -> Any:
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_table_of_fields_is_the_surface(generation: str) -> None:
    line = LINES[GENERATIONS.index(generation)]
    for name in CLASSES:
        table = {
            field.name: plain(field.default_in(line))
            for field in FIELDS.values()
            if line in field.generations and field.seq2seq == (name == "Seq2SeqTrainingArguments")
        }
        wanted = {key: value for key, value in fields(generation, name).items() if not key.startswith("_")}
        assert table == wanted


def test_kinds_are_the_types_of_the_surfaces() -> None:
    wanted: dict[str, set[str]] = {}
    for generation, name in ALL:
        for field in surface(generation, name)["fields"]:
            words = {word.strip() for word in TYPE.sub(r"\1 | None", field["type"]).split("|")}
            if len(words - {"None"}) == 1 and words <= {"bool", "int", "float", "str", "None"}:
                wanted[field["name"]] = wanted.get(field["name"], set()) | words
    kinds = {name: f"{max(words - {'None'})}{'?' * ('None' in words)}" for name, words in wanted.items()}
    # Steps became a fraction's type late; the others take text beside what they are.
    assert kinds.pop("warmup_steps") in {"int", "float"}
    other = {name for name in kinds if name not in FIELDS or FIELDS[name].kind in {"dict", "list", "object"}}
    assert {name: FIELDS[name].kind for name in kinds.keys() - other} == {
        name: kinds[name] for name in kinds.keys() - other
    }


@pytest.mark.parametrize(("generation", "name"), ALL)
def test_all_defaults_of_a_generation_at_once(generation: str, name: str) -> None:
    defaults = {**fields(generation, "TrainingArguments"), **fields(generation, name)}
    given = {key: value for key, value in defaults.items() if not key.startswith("_")}
    made(name, **{**given, **FOR_NAMES})


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.name)
def test_every_default_is_accepted(field: Any) -> None:
    for line in field.generations:
        args = made("Seq2SeqTrainingArguments", **{field.name: field.default_in(line)})
        # Where the installed release lacks it, None is as good as not given.
        assert hasattr(args, field.name) or field.default_in(line) is None


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in NOT_HERE])
def test_every_name_is_accepted_read_and_set(name: str) -> None:
    value, along = unlike(name), ALONG.get(name, {})
    args = made("Seq2SeqTrainingArguments", **{**along, name: value})
    assert plain(getattr(args, name)) == as_transformers_holds_it(name, {**along, name: value})
    later = made("Seq2SeqTrainingArguments", **along)
    setattr(later, name, value)
    assert getattr(later, name) == value


def as_transformers_holds_it(name: str, options: dict[str, Any]) -> Any:
    """What HF's own class makes of a value of its own, and the value itself of any other."""
    theirs = transformers.Seq2SeqTrainingArguments
    if name in FOR_THE_HUB_OR_A_MAC or name not in {field.name for field in dataclasses.fields(theirs)}:
        return options[name]
    with contained(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        known = {key: value for key, value in options.items() if key in inspect.signature(theirs).parameters}
        return plain(getattr(theirs(**{**FOR_NAMES, **known}), name))


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_method_takes_every_parameter(generation: str, name: str) -> None:
    ours = getattr(compat, name)
    for method, signature in surface(generation, name)["methods"].items():
        attribute = inspect.getattr_static(ours, method)
        assert isinstance(attribute, property) == (signature == "property"), method
        if signature != "property":
            # A decorator's own signature tells what it takes; `*args, **kwargs` behind it would tell nothing.
            shown = set(inspect.signature(attribute).parameters)
            assert parameters(signature)[0] - shown == set(), method


def setter_calls() -> list[tuple[str, str, str, Any]]:
    calls = {
        (method, argument.arg, ast.unparse(value))
        for generation in GENERATIONS
        for method, signature in surface(generation, "TrainingArguments")["methods"].items()
        if method.startswith("set_")
        for argument, value in defaulted(signature)
    }
    return sorted(calls)


def defaulted(signature: str) -> list[tuple[ast.arg, ast.expr]]:
    arguments = ast.parse(f"def f({signature}): ...").body[0].args
    return list(zip(arguments.args[-len(arguments.defaults) :], arguments.defaults, strict=True))


@pytest.mark.parametrize(("method", "parameter", "text"), setter_calls())
def test_every_parameter_of_a_setter_can_be_given(method: str, parameter: str, text: str) -> None:
    args = made("TrainingArguments")
    needed = {"model_id": "me/model"} if method == "set_push_to_hub" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert getattr(args, method)(**needed, **{parameter: ast.literal_eval(text)}) is args


@pytest.mark.parametrize("name", CLASSES)
def test_what_the_installed_release_has_comes_first_and_in_its_order(name: str) -> None:
    theirs = [field.name for field in dataclasses.fields(getattr(transformers, name))]
    ours = [field.name for field in dataclasses.fields(getattr(compat, name))]
    if name == "TrainingArguments":
        assert ours[: len(theirs)] == theirs
    assert [field for field in ours if field in theirs] == theirs
    assert accepted(getattr(compat, name), "__init__")[0] >= set(FIELDS) - {
        field.name for field in FIELDS.values() if field.seq2seq and name == "TrainingArguments"
    }
