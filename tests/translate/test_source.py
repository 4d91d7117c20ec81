"""The script that a plan becomes: it runs alone, and its numbers are those of the Trainer."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TrainerCallback

import compat
from compat.translate import RULES
from compat.translate.source.recipe import CARRIED, CARRIED_VALUES
from tests.small import Regression, arguments, rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*not supported by the model summary"),
    pytest.mark.filterwarnings("ignore:mtime may not be reliable"),
    # Lightning's own affair.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
]


def tiny_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def tiny_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.2,
    )
    return LlamaForCausalLM(config)


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Rows of which each has another number of labels that count."""
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(17, (6,), generator=generator) for _ in range(count)]
    return [
        {"input_ids": row, "labels": torch.where(torch.arange(6) < 2 + at % 5, row, -100)}
        for at, row in enumerate(tokens)
    ]


class Noisy(torch.utils.data.Dataset):
    """Rows that draw from the generator that dropout draws from, too."""

    def __init__(self, count: int) -> None:
        self.rows = rows(count)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {**self.rows[at], "x": self.rows[at]["x"] + torch.rand(4), "unused": "text"}


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __init__(self, count: int) -> None:
        self.rows = rows(count)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


TASKS = {
    "regression": (Regression, rows),
    "language": (tiny_gpt2, sentences),
    "llama": (tiny_llama, sentences),
    "noisy": (Regression, Noisy),
    "stream": (Regression, Stream),
}


@dataclass(frozen=True)
class Case:
    """Arguments whose script must give the Trainer's numbers."""

    options: dict[str, Any]
    tasks: tuple[str, ...] = ("regression",)


BOTH = ("regression", "language")
ALL = (*BOTH, "llama")
CASES = {
    "defaults": Case({"max_steps": -1}, BOTH),
    "max_steps": Case({"max_steps": 9}, ("regression", "noisy", "stream")),
    "part of an epoch": Case({"max_steps": -1, "num_train_epochs": 1.4}),
    "windows of three, a short last one": Case(
        {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 3}, (*ALL, "noisy")
    ),
    "windows of four": Case({"max_steps": 5, "gradient_accumulation_steps": 4, "weight_decay": 0.1}, BOTH),
    "weight decay and a low limit of the norm": Case(
        {"weight_decay": 0.3, "max_grad_norm": 0.1, "learning_rate": 1e-2, "max_steps": 6}, ALL
    ),
    "no clipping, warm-up, cosine": Case(
        {"max_grad_norm": 0, "warmup_steps": 0.3, "lr_scheduler_type": "cosine", "max_steps": 8}
    ),
    "scheduler with options": Case(
        {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 2,
            "max_steps": 7,
        }
    ),
    "evaluation by steps": Case(
        {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True, "max_steps": 10}, (*ALL, "noisy")
    ),
    "evaluation by fractions of the run": Case(
        {"eval_strategy": "steps", "eval_steps": 0.4, "max_steps": -1, "num_train_epochs": 1}
    ),
    "evaluation by epoch, in windows": Case(
        {"eval_strategy": "epoch", "max_steps": 5, "gradient_accumulation_steps": 2}, ALL
    ),
    "bf16": Case({"bf16": True, "max_steps": 6, "eval_strategy": "epoch"}, BOTH),
    "bf16 in windows": Case({"bf16": True, "max_steps": 6, "gradient_accumulation_steps": 3}, ALL),
    "seeds, in order": Case({"seed": 7, "data_seed": 3, "max_steps": 9, "dataloader_drop_last": True}),
    "sequential": Case({"train_sampling_strategy": "sequential", "max_steps": 9}),
    "checkpoints": Case({"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "max_steps": 5}),
    "checkpoints by epoch": Case({"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}),
    "activations computed again": Case({"activation_checkpointing": True, "max_steps": 4}, ("language",)),
    **{
        f"optim={name}": Case(
            {"optim": name, "max_steps": 5, "learning_rate": 1e-2, "weight_decay": 0.1, **more}
        )
        for name, more in {
            "adamw_torch": {"adam_beta1": 0.8, "adam_epsilon": 1e-6},
            "adafactor": {},
            "sgd": {"optim_args": "momentum=0.9,nesterov=true,weight_decay=0.5"},
            "adagrad": {"optim_args": "lr_decay=0.1"},
            "rmsprop": {"optim_args": "momentum=0.5,centered=True"},
        }.items()
    },
}


def written(folder: Path, plan: compat.LightningPlan) -> Path:
    script = folder / "script.py"
    script.write_text(plan.to_source(), encoding="utf-8")
    return script


def imported(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script", script)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Losses(TrainerCallback):
    """Every loss in full, where the Trainer's own log rounds."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.losses: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.losses.append(self.trainer._tr_loss.item())


def task(name: str) -> tuple[Any, Any, Any, None]:
    torch.manual_seed(0)
    make_model, make_rows = TASKS[name]
    return make_model().eval(), make_rows(13), make_rows(5), None


def metrics(trainer: Any, name: str) -> list[float]:
    with open(f"{trainer.logger.log_dir}/metrics.csv", encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize(
    ("name", "case"), [pytest.param(t, c, id=f"{n}, {t}") for n, c in CASES.items() for t in c.tasks]
)
def test_numbers_are_those_of_the_trainer(tmp_path: Path, name: str, case: Case) -> None:
    model, train_dataset, eval_dataset, _ = task(name)
    losses = Losses()
    args = arguments(tmp_path / "out", **case.options)
    losses.trainer = trainer = compat.Trainer(
        model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, callbacks=[losses]
    )
    trainer.train()

    again, *rest = task(name)
    theirs = imported(written(tmp_path, trainer.plan)).train(again, *rest)

    assert metrics(theirs, "train_loss") == losses.losses
    for ours, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, other)
    expected = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    # Lightning adds up the means of batches, HF the losses of samples: their last digits may differ.
    assert metrics(theirs, "eval_loss") == pytest.approx(expected, rel=1e-6)


def test_formatters_and_linters_leave_it_as_it_is(tmp_path: Path) -> None:
    for at, options in enumerate([*(case.options for case in CASES.values()), MUCH]):
        plan = compat.plan(arguments("out", **options))
        (tmp_path / f"script_{at}.py").write_text(plan.to_source(), encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    width = ["--isolated", "--line-length", "110", "--target-version", "py310", str(tmp_path)]
    subprocess.run([*ruff, "format", "--check", *width], check=True)
    subprocess.run([*ruff, "check", "--select", "E,F,I,B,UP,SIM", *width], check=True)


TASK = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x, labels):
        return {"loss": (self.linear(x) - labels).square().mean()}


def make():
    rows = [{"x": torch.ones(2) * at, "labels": torch.ones(1), "unused": "text"} for at in range(5)]
    return Model(), rows, rows[:3], None
"""


def test_runs_as_a_program(tmp_path: Path) -> None:
    plan = compat.plan(arguments("out", eval_strategy="epoch", max_steps=4, save_strategy="epoch"))
    script = written(tmp_path, plan)
    (tmp_path / "task.py").write_text(TASK, encoding="utf-8")
    command = [sys.executable, str(script), "task:make"]
    # Nothing of ours, and not HF's Trainer, is loaded by it.
    forbidden = "import sys; sys.modules['compat'] = sys.modules['transformers.trainer'] = None"
    (tmp_path / "sitecustomize.py").write_text(forbidden, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "out").glob("*.ckpt")} == {
        "checkpoint-3.ckpt",
        "checkpoint-4.ckpt",
    }


MUCH: dict[str, Any] = {
    "bf16": True,
    "dataloader_num_workers": 2,
    "eval_strategy": "epoch",
    "full_determinism": True,
    "gradient_accumulation_steps": 2,
    "hub_token": "hf_hidden",
    "label_smoothing_factor": 0.1,
    "lightning": {"detect_anomaly": True, "profiler": "simple"},
    "logging_strategy": "epoch",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "lr_scheduler_type": "cosine_with_restarts",
    "max_steps": -1,
    "neftune_noise_alpha": 5.0,
    "num_train_epochs": 1.5,
    "output_dir": 'a "quoted" {folder}',
    "push_to_hub": True,
    "save_only_model": True,
    "save_steps": 0.25,
    "save_strategy": "steps",
    "torch_empty_cache_steps": 3,
}
"""Arguments of all kinds at once."""


def source(**options: Any) -> str:
    return compat.plan({"output_dir": "out", "use_cpu": True, **options}).to_source()


def test_what_is_not_carried_over_is_named(tmp_path: Path) -> None:
    docstring, body = source(**MUCH).split('"""\n', 1)
    said = docstring.partition("Not carried over: ")[2].partition(".\n\n")[0].rstrip(".\n").split()
    assert [name.rstrip(",") for name in said] == [
        "hub_token",
        "label_smoothing_factor",
        "lightning.profiler",
        "neftune_noise_alpha",
        "push_to_hub",
        "torch_empty_cache_steps",
    ]
    assert "hf_hidden" not in docstring + body
    assert "detect_anomaly=True" in body


def test_nothing_is_said_where_all_is_carried_over() -> None:
    assert "Not carried over" not in source(learning_rate=1e-3, evaluation_strategy="steps", eval_steps=2)


@pytest.mark.filterwarnings("ignore:.*old name")
@pytest.mark.parametrize("given", [{"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}])
def test_an_order_by_length_is_named_by_either_name(given: dict[str, Any]) -> None:
    assert next(iter(given)) in source(**given).partition('"""\n')[0]


CHANGED: dict[str, dict[str, Any]] = {
    "activation_checkpointing": {"activation_checkpointing": True},
    "activation_checkpointing_kwargs": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
    },
    "adafactor": {"adafactor": True},
    "adam_beta1": {"adam_beta1": 0.5},
    "adam_beta2": {"adam_beta2": 0.5},
    "adam_epsilon": {"adam_epsilon": 1e-3},
    "bf16": {"bf16": True},
    "data_seed": {"data_seed": 7},
    "dataloader_drop_last": {"dataloader_drop_last": True},
    "dataloader_in_order": {"dataloader_in_order": False},
    "dataloader_multiprocessing_context": {"dataloader_multiprocessing_context": "spawn"},
    "dataloader_num_workers": {"dataloader_num_workers": 2},
    "dataloader_persistent_workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 5},
    "disable_tqdm": {"disable_tqdm": True},
    "eval_on_start": {"eval_on_start": True},
    "eval_steps": {"eval_strategy": "steps", "eval_steps": 7},
    "eval_strategy": {"eval_strategy": "epoch"},
    "evaluation_strategy": {"evaluation_strategy": "epoch"},
    "full_determinism": {"full_determinism": True},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing_kwargs": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "learning_rate": {"learning_rate": 1.0},
    "logging_steps": {"logging_steps": 7},
    "logging_strategy": {"logging_strategy": "no"},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 0.7}},
    "lr_scheduler_type": {"lr_scheduler_type": "cosine"},
    "max_grad_norm": {"max_grad_norm": 0.0},
    "max_steps": {"max_steps": 7},
    "num_train_epochs": {"num_train_epochs": 7},
    "optim": {"optim": "sgd"},
    "output_dir": {"output_dir": "elsewhere"},
    "per_device_eval_batch_size": {"eval_strategy": "epoch", "per_device_eval_batch_size": 7},
    "per_device_train_batch_size": {"per_device_train_batch_size": 7},
    "per_gpu_eval_batch_size": {"eval_strategy": "epoch", "per_gpu_eval_batch_size": 7},
    "per_gpu_train_batch_size": {"per_gpu_train_batch_size": 7},
    "remove_unused_columns": {"remove_unused_columns": False},
    "save_only_model": {"save_only_model": True},
    "save_steps": {"save_steps": 7},
    "save_strategy": {"save_strategy": "epoch"},
    "save_total_limit": {"save_total_limit": 7},
    "seed": {"seed": 7},
    "train_sampling_strategy": {"train_sampling_strategy": "sequential"},
    "warmup_ratio": {"warmup_ratio": 0.7},
    "warmup_steps": {"warmup_steps": 7},
    "weight_decay": {"weight_decay": 0.7},
}
"""Argument → what changes it, where a script honours it."""

ELSEWHERE = {
    "dataloader_pin_memory": "shows with a device only",
    "fp16": "shows with a device only",
    "group_by_length": "is carried over where it is off",
    "no_cuda": "shows with a device only",
    "optim_args": "transformers 4 passes over them",
    "use_cpu": "shows with a device only",
}
"""Argument → why it is not in the table above."""


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CHANGED)
def test_an_argument_that_is_not_named_changes_the_script(name: str) -> None:
    given = CHANGED[name]
    text = source(**given)
    assert "Not carried over" not in text
    assert text != source(**{key: value for key, value in given.items() if key != name})


def test_table_of_changes_is_complete() -> None:
    assert CARRIED | CARRIED_VALUES.keys() == CHANGED.keys() | ELSEWHERE.keys()
    assert CARRIED | CARRIED_VALUES.keys() <= RULES.keys()


@pytest.mark.parametrize(
    "given",
    [{"optim": "lion_32bit"}, {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}],
)
def test_what_it_cannot_build_raises_where_it_would_be_built(tmp_path: Path, given: dict[str, Any]) -> None:
    script = written(tmp_path, compat.plan(arguments(tmp_path / "out", **given)))
    name, value = next(iter(given.items()))
    with pytest.raises(NotImplementedError, match=f"{name}='{value}'"):
        imported(script).train(*task("regression"))


def test_sharding_raises_and_several_processes_are_warned_of() -> None:
    text = compat.plan({"output_dir": "out", "fsdp": "full_shard"}, accelerator="cuda", devices=2).to_source()
    assert "raise NotImplementedError(\"strategy='model_parallel'\")" in text
    assert "Written for one process" in text


def test_is_a_page_or_three() -> None:
    assert 80 <= source().count("\n") <= 150
