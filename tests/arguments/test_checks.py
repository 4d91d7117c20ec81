from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers import IntervalStrategy, SchedulerType
from transformers.debug_utils import DebugOption
from transformers.training_args import OptimizerNames

import compat
from compat.arguments.checks import AT_LEAST, CHECKS, WITHIN, nearest, problems
from compat.arguments.fields import FIELDS
from compat.errors import ArgumentError, UnknownArgumentError
from compat.upstream.environment import contained

BASE: dict[str, Any] = {"output_dir": "out", "report_to": [], "use_cpu": True}

BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"lerning_rate": 1}, ["`lerning_rate=1`", "Did you mean `learning_rate`?"]),
    ({"qqq": 1}, ["`qqq=1`", "Remove it."]),
    ({"learning_rate": "1e-4"}, ["`learning_rate='1e-4'`", "Give 0.0001", "1.0e-4"]),
    ({"learning_rate": "1.25E5"}, ["Give 125000.0", "1.25e+5"]),
    ({"learning_rate": "fast"}, ["`learning_rate='fast'`", "Give a number."]),
    ({"learning_rate": [1e-4]}, ["`learning_rate=[0.0001]`", "Give one number."]),
    ({"max_steps": "8"}, ["`max_steps='8'`", "Give 8."]),
    ({"max_steps": 2.5}, ["`max_steps=2.5`", "Give 2, say."]),
    ({"max_steps": float("inf")}, ["`max_steps=inf`", "Give one."]),
    ({"max_steps": float("nan")}, ["`max_steps=nan`", "Give one."]),
    ({"max_steps": "inf"}, ["`max_steps='inf'`", "Give inf."]),
    ({"seed": 1.5}, ["`seed=1.5`", "Give 2, say."]),
    ({"seed": -1}, ["`seed=-1`", "Give 0 or more."]),
    ({"bf16": "false"}, ["`bf16='false'`", "Give bf16=False."]),
    ({"bf16": "True"}, ["`bf16='True'`", "Give bf16=True."]),
    ({"no_cuda": "False"}, ["`no_cuda='False'`", "Give no_cuda=False."]),
    ({"warmup_ratio": "0.1"}, ["`warmup_ratio='0.1'`", "Give 0.1."]),
    ({"warmup_ratio": 1.5}, ["`warmup_ratio=1.5`", "Give a number from 0 to 1."]),
    ({"warmup_ratio": -0.5}, ["`warmup_ratio=-0.5`", "Give a number from 0 to 1."]),
    ({"per_gpu_train_batch_size": 0}, ["`per_gpu_train_batch_size=0`", "Give 1 or more."]),
    ({"tpu_num_cores": "x"}, ["`tpu_num_cores='x'`", "Give a number."]),
    ({"warmup_steps": -1}, ["`warmup_steps=-1`", "Give 0 or more.", "In transformers' words"]),
    ({"learning_rate": -1.0}, ["`learning_rate=-1.0`", "Give 0 or more."]),
    ({"gradient_accumulation_steps": 0}, ["`gradient_accumulation_steps=0`", "Give 1 or more."]),
    ({"per_device_train_batch_size": 0}, ["`per_device_train_batch_size=0`", "Give 1 or more."]),
    ({"dataloader_num_workers": -1}, ["`dataloader_num_workers=-1`", "Give 0 or more."]),
    ({"adam_beta1": 1.5}, ["`adam_beta1=1.5`", "Give a number from 0 to 1."]),
    ({"fp16": True, "bf16": True}, ["`fp16=True` and `bf16=True`", "Give one of them."]),
    ({"fp16_full_eval": True, "bf16_full_eval": True}, ["`bf16_full_eval=True`", "Give one of them."]),
    ({"half_precision_backend": "apex"}, ["`half_precision_backend='apex'`", "Remove the argument"]),
    ({"fp16_backend": "apex"}, ["`fp16_backend='apex'`", "Remove the argument"]),
    (
        {"fsdp": "full_shard", "deepspeed": "ds.json"},
        ["`fsdp='full_shard'`", "`deepspeed='ds.json'`", "Give one", "no such file"],
    ),
    ({"fsdp": "hybrid_shard"}, ["`fsdp='hybrid_shard'`", "version 1 of FSDP needs a GPU", "'full_shard'"]),
    ({"fsdp": "offload"}, ["`fsdp='offload'`", "Give 'full_shard offload'"]),
    (
        {
            "fsdp": "full_shard shard_grad_op",
            "save_only_model": True,
            "fsdp_config": {"version": 2, "xlaa": 1},
        },
        ["full_shard and shard_grad_op exclude each other", "'xlaa': 1", "Did you mean `xla`?"],
    ),
    ({"eval_strategy": "steps", "eval_steps": 1.5}, ["`eval_steps=1.5`", "Give 2"]),
    ({"logging_steps": 2.5}, ["`logging_steps=2.5`", "Give 2"]),
    ({"logging_steps": float("inf")}, ["`logging_steps=inf`", "Give 500"]),
    ({"save_steps": 2.5}, ["`save_steps=2.5`", "Give 2"]),
    ({"logging_steps": 0}, ["`logging_steps=0`", "logging_strategy='no'", "In transformers' words"]),
    (
        {"eval_strategy": "steps", "logging_strategy": "no", "logging_steps": 0},
        ["`eval_strategy='steps'`", "Give eval_steps."],
    ),
    (
        {"load_best_model_at_end": True},
        ["`load_best_model_at_end=True`", "`eval_strategy='no'`", "Give both"],
    ),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 200},
        ["`save_steps=500`", "`eval_steps=200`", "Give a save_steps"],
    ),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.25},
        ["`save_steps=0.25`", "`eval_steps=0.1`", "Give a save_steps"],
    ),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ["`eval_strategy='no'`", "Give eval_strategy"]),
    ({"lr_scheduler_type": "Linear"}, ["`lr_scheduler_type='Linear'`", "Did you mean `linear`?"]),
    ({"optim": "adamw"}, ["`optim='adamw'`", "Did you mean `adamw"]),
    ({"evaluation_strategy": "epochs"}, ["`eval_strategy='epochs'`", "Did you mean `epoch`?"]),
    ({"save_strategy": "zzz"}, ["`save_strategy='zzz'`", "Give one of no, steps, epoch, best."]),
    ({"dataloader_prefetch_factor": 2}, ["`dataloader_prefetch_factor=2`", "Give dataloader_num_workers=1"]),
    (
        {"dataloader_persistent_workers": True},
        ["`dataloader_persistent_workers=True`", "Give dataloader_num"],
    ),
    (
        {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 0},
        ["`dataloader_prefetch_factor=0`", "Give 1"],
    ),
    (
        {"accelerator_config": "{bad", "split_batches": True},
        ["`accelerator_config=<str>`", "not JSON", "Give "],
    ),
    ({"lr_scheduler_kwargs": "{bad"}, ["`lr_scheduler_kwargs=<str>`", "not JSON", "Give "]),
    ({"lightning": "{bad"}, ["`lightning=<str>`", "not JSON", "Give "]),
    ({"lightning": [1]}, ["`lightning=<list>`", "Give "]),
    ({"lightning": {"profilr": 1}}, ["`lightning={'profilr': 1}`", "Did you mean `profiler`?"]),
    ({"lightning": {"max_steps": "5"}}, ["`max_steps='5'`", "Give 5."]),
]
"""Arguments → what the error says."""

GOOD: list[dict[str, Any]] = [
    {
        "learning_rate": np.float32(1e-4),
        "max_steps": np.int64(3),
        "logging_steps": np.int64(3),
        "seed": np.int32(1),
    },
    {"learning_rate": 0, "weight_decay": 0, "adam_epsilon": 0, "adam_beta1": 0},
    {"max_steps": 10.0, "num_train_epochs": 2, "warmup_steps": 0},
    {"num_train_epochs": 0.5, "max_steps": 0},
    {"max_steps": -5, "num_train_epochs": 0},
    {"save_steps": -1, "logging_steps": -1},
    {"save_steps": 0},
    {"save_steps": 0.5, "logging_steps": np.float64(0.5)},
    {
        "save_steps": 1.5,
        "save_strategy": "no",
        "logging_steps": 1.5,
        "logging_strategy": "epoch",
        "eval_steps": 1.5,
    },
    {"logging_steps": 0, "logging_strategy": "no"},
    {"logging_steps": 1.0, "save_steps": 2.0, "eval_strategy": "steps", "eval_steps": 3.0},
    {"max_grad_norm": -1},
    {"max_grad_norm": None},
    {"max_grad_norm": 0},
    {"output_dir": Path("out")},
    {"output_dir": None},
    {
        "optim": OptimizerNames.SGD,
        "lr_scheduler_type": SchedulerType.COSINE,
        "eval_strategy": IntervalStrategy.EPOCH,
    },
    {"save_strategy": IntervalStrategy.EPOCH},
    {"save_strategy": "best", "metric_for_best_model": "loss", "load_best_model_at_end": True},
    {"load_best_model_at_end": True, "save_strategy": "no"},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 250},
    {"load_best_model_at_end": True, "eval_strategy": "steps"},
    {"save_total_limit": 0},
    {"report_to": None},
    {"report_to": "none"},
    {"report_to": "all"},
    {"report_to": ["tensorboard", "wandb"]},
    {"report_to": ("tensorboard",)},
    {"report_to": []},
    {"eval_strategy": "steps", "eval_steps": 0.25},
    {"eval_strategy": "steps", "eval_steps": -1},
    {"eval_strategy": "steps", "eval_steps": 0},
    {"debug": ["underflow_overflow"]},
    {"debug": [DebugOption.UNDERFLOW_OVERFLOW]},
    {"debug": "underflow_overflow tpu_metrics_debug"},
    {"debug": None},
    {"include_num_input_tokens_seen": True},
    {"include_num_input_tokens_seen": "non_padding"},
    {"lr_scheduler_kwargs": '{"num_cycles": 2}', "lr_scheduler_type": "cosine"},
    {"lr_scheduler_kwargs": None},
    {"label_names": ["a"], "include_for_metrics": ["inputs", "loss"]},
    {"label_names": ("a",)},
    {"label_smoothing_factor": -0.2},
    {"label_smoothing_factor": 1.0},
    {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 2, "dataloader_persistent_workers": True},
    {"data_seed": -1},
    {"bf16": None},
    {"bf16": 1, "fp16": 0},
    {"bf16": np.True_},
    {"bf16": True, "fp16_full_eval": True},
    {"fsdp": ""},
    {"fsdp": False},
    {"fsdp": []},
    {"fsdp": ["full_shard"]},
    {"deepspeed": None},
    {"deepspeed": ""},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": '{"use_reentrant": false}'},
    {"accelerator_config": '{"split_batches": true}'},
    {"eval_delay": 0.5},
    {"torch_empty_cache_steps": 2},
    {"resume_from_checkpoint": True},
    {"local_rank": -1},
    {"local_rank": "0"},
    {"neftune_noise_alpha": 5},
    {"hub_strategy": "end", "hub_private_repo": None},
    {"ddp_timeout": 0},
    {"optim_target_modules": "all-linear"},
    {"disable_tqdm": None, "remove_unused_columns": None},
]
"""Arguments that transformers takes, and so must we."""


@pytest.mark.parametrize(("options", "texts"), BAD, ids=",".join)
def test_what_is_wrong_is_named_with_its_value_and_a_cure(options: dict[str, Any], texts: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        compat.TrainingArguments(**{**BASE, **options})
    for text in texts:
        assert text in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError) == isinstance(caught.value, UnknownArgumentError)
    with pytest.raises((ArgumentError, ValueError)):
        compat.plan({**BASE, **options, **unknown(options)})


def unknown(options: dict[str, Any]) -> dict[str, Any]:
    # A plan of a dict leaves it to its caller which names are arguments.
    return {"seed": -1} if options.keys() - FIELDS.keys() - {"lightning"} else {}


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_what_transformers_takes_is_taken(options: dict[str, Any]) -> None:
    with contained(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = transformers.TrainingArguments(**copy.deepcopy({**BASE, **options}))
        ours = compat.TrainingArguments(**copy.deepcopy({**BASE, **options}))
        differing = {name for name in theirs.to_dict() if getattr(ours, name) != getattr(theirs, name)}
        # transformers 5 would make a list of None, which is no integration.
        assert differing <= {"logging_dir"} | {"report_to"} & {n for n, v in options.items() if v is None}
        assert compat.plan({**BASE, **options}).flags["max_steps"] == compat.plan(ours).flags["max_steps"]


def test_all_problems_come_in_one_error() -> None:
    with pytest.raises(ArgumentError) as caught:
        compat.TrainingArguments(
            **BASE,
            learning_rate=-1,
            warmup_ratio=2,
            fp16=True,
            bf16=True,
            dataloader_prefetch_factor=2,
            lightning={"min_epochs": 3},
            evaluation_strategy="nope",
        )
    lines = str(caught.value).splitlines()
    for name in (
        "learning_rate",
        "warmup_ratio",
        "fp16",
        "dataloader_prefetch",
        "min_epochs",
        "eval_strategy",
    ):
        assert sum(f"`{name}" in line or f"'{name}'" in line for line in lines) == 1, name


def test_all_unknown_names_come_in_one_error() -> None:
    with pytest.raises(UnknownArgumentError) as caught:
        compat.TrainingArguments(**BASE, lerning_rate=1, weigth_decay=2)
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
        "`lerning_rate",
        "`weigth_decay",
    ]


def test_transformers_own_words_come_along_once() -> None:
    with pytest.raises(ArgumentError) as caught:
        compat.TrainingArguments(**BASE, fp16=True, bf16=True)
    assert str(caught.value).count("In transformers' words") == 1
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("table", [AT_LEAST, WITHIN])
def test_tables_name_arguments_and_their_defaults_pass(table: dict[str, Any]) -> None:
    assert table.keys() <= FIELDS.keys()
    assert problems({name: FIELDS[name].default for name in table}) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_no_check_minds_what_is_not_there(check: Any) -> None:
    assert list(check({})) == []
    assert list(check(dict.fromkeys(FIELDS))) == []


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("lerning_rate", "Did you mean `learning_rate`?"),
        ("evaluate_strategy", "Did you mean `eval"),
        ("qqq", ""),
    ],
)
def test_the_nearest_name(name: str, answer: str) -> None:
    assert nearest(name, FIELDS).startswith(answer)
    assert bool(nearest(name, FIELDS)) == bool(answer)
