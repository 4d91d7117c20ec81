"""TRL's trainers on Hugging Face's Trainer and, by `compat.on_lightning`, on ours: same numbers."""

from __future__ import annotations

import copy
import importlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import compat
from tests.parity.bench import ALWAYS
from tests.parity.events import EventRecorder
from tests.parity.parts.preferences import Models, bytewise, lengths, odd_lengths, rows, tokenizer
from tests.parity.plain import plain
from tests.parity.record import assert_equal, isolated, record_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

trl = pytest.importorskip("trl", reason="its trainers are what is compared; the extra `trl` brings it")

# What TRL, transformers and torch warn of is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

MAJOR = int(trl.__version__.split(".")[0])

THREE = {**ALWAYS, "bf16": False, "max_steps": 3, "per_device_train_batch_size": 2}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}
SAVES = {"save_strategy": "steps", "save_steps": 2}
SHORT_WINDOW = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 3}
GENERATES = {"num_generations": 2, "max_completion_length": 5, "per_device_train_batch_size": 4}
REUSES = {"num_iterations": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
SYNCS = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
OF_ITS_OWN_LOOP = {
    "max_steps": -1,
    "total_episodes": 8,
    "per_device_train_batch_size": 4,
    "response_length": 4,
    "num_ppo_epochs": 2,
    "num_sample_generations": 0,
}

Parts = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """One of TRL's trainers, and what it is given.

    Args:
        trainer: its class, without the ending.
        data: the kind of its rows.
        args: fields of its arguments beside those of `THREE`.
        parts: further arguments of its constructor.
        evaluates: whether it has rows to evaluate with.
        resumes: whether it goes on from its first checkpoint afterwards.
        since: first major release of TRL that has it so.
        before: first one that no longer has.
        name: tells it from others of the same class.
    """

    trainer: str
    data: str
    args: Mapping[str, Any] = field(default_factory=dict)
    parts: Callable[[Models], Parts] = lambda models: {"model": models()}
    evaluates: bool = False
    resumes: bool = False
    since: int = 0
    before: int = 2
    name: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.trainer, self.name)))


def taught(models: Models) -> Parts:
    return {"model": models(), "teacher_model": models(seed=7)}


def taught_bytes(models: Models) -> Parts:
    tokens = bytewise()
    parts = {"model": models(tokens=tokens), "teacher_model": models(seed=7, tokens=tokens)}
    return {**parts, "processing_class": tokens}


def rewarded(models: Models) -> Parts:
    return {"model": models(), "reward_funcs": [lengths, odd_lengths]}


def rewarded_at_times(models: Models) -> Parts:
    return {"model": models(), "reward_funcs": odd_lengths}


def scored(models: Models) -> Parts:
    return {"model": models(), "ref_model": models(seed=6), "reward_model": models("sequence")}


def scored_by_its_own_tokens(models: Models) -> Parts:
    return {**scored(models), "reward_processing_class": tokenizer()}


def with_a_critic(models: Models) -> Parts:
    return {**scored(models), "value_model": models("sequence", seed=2)}


def in_older_words(models: Models) -> Parts:
    policy, reference = models(), models(seed=6)
    return {"policy": policy, "ref_policy": reference, "reward_model": models("sequence")}


SETUPS = (
    Setup("SFT", "text", {"packing": True, "max_length": 16, **SHORT_WINDOW}, name="packed"),
    Setup("SFT", "completion", {**EVALUATES, **SAVES, "max_steps": 4}, evaluates=True, resumes=True),
    Setup("DPO", "pair", {**SYNCS, **SAVES, "max_steps": 4}, resumes=True),
    Setup("DPO", "pair", {"precompute_ref_log_probs": True, **EVALUATES}, evaluates=True, name="precomputed"),
    Setup("KTO", "judged", {"per_device_train_batch_size": 4, **EVALUATES}, evaluates=True),
    Setup(
        "Reward",
        "whole pair",
        {**EVALUATES, **SAVES, "load_best_model_at_end": True},
        lambda models: {"model": models("sequence")},
        evaluates=True,
    ),
    Setup("GRPO", "prompt", {**GENERATES, **REUSES, **SAVES, **SYNCS, "beta": 0.1}, rewarded, resumes=True),
    Setup("GRPO", "prompt", {**GENERATES, **EVALUATES}, rewarded, evaluates=True, name="evaluated"),
    Setup("CPO", "pair", {"max_length": 40, "max_prompt_length": 20}, before=1),
    Setup("CPO", "pair", {"max_length": 40}, since=1),
    Setup("ORPO", "pair", {"max_length": 40}, since=1),
    Setup("ORPO", "pair", {"max_length": 40, "max_prompt_length": 20, **SHORT_WINDOW}, before=1),
    Setup("GKD", "chat", {"max_new_tokens": 4, "lmbda": 1.0}, taught),
    Setup("RLOO", "prompt", {**GENERATES, **REUSES}, rewarded, since=1),
    Setup("Distillation", "question", {"max_completion_length": 4, **SHORT_WINDOW}, taught, since=1),
    Setup("OnlineDPO", "prompt", {"max_new_tokens": 4, **SAVES}, rewarded, since=1),
    Setup("GOLD", "chat", {"max_completion_length": 4, "lmbda": 1.0}, taught_bytes, since=1),
    Setup(
        "IWOPD",
        "chat",
        {"max_completion_length": 4, "max_prompt_length": 20, "max_length": 40},
        taught,
        since=1,
    ),
    Setup("TPO", "triple", since=1),
    Setup("A2PO", "question", {"max_completion_length": 4}, rewarded_at_times, since=1),
    Setup("GMPO", "prompt", GENERATES, rewarded, since=1),
    Setup(
        "SDFT",
        "question",
        {
            "max_completion_length": 4,
            "num_generations": 1,
            "distillation_topk": 5,
            "teacher_model_kind": "ema",
            "teacher_sync_steps": 1,
        },
        since=1,
    ),
    Setup("SDPO", "question", GENERATES, rewarded_at_times, since=1),
    Setup("BCO", "judged", {"per_device_train_batch_size": 4, "max_length": 40, **SAVES}, before=1),
    Setup("PRM", "steps", parts=lambda models: {"model": models("token")}, before=1),
    Setup("OnlineDPO", "prompt", {"max_new_tokens": 4, **SAVES}, scored_by_its_own_tokens, before=1),
    Setup("XPO", "prompt", {"max_new_tokens": 4}, scored, before=1),
    Setup("NashMD", "prompt", {"max_new_tokens": 4}, scored, before=1),
    Setup("PPO", "prompt", {**OF_ITS_OWN_LOOP, **SAVES, "bf16": True}, with_a_critic, before=1),
    Setup("RLOO", "prompt", {**OF_ITS_OWN_LOOP, **SAVES}, in_older_words, before=1),
    Setup("IterativeSFT", "text", {"max_length": 40}, before=1),
)

TAKEN = [setup for setup in SETUPS if setup.since <= MAJOR < setup.before]

ON_THE_LEFT = ("GRPO", "RLOO", "Distillation", "OnlineDPO", "IWOPD", "A2PO", "GMPO", "SDFT", "SDPO")
"""Trainers that generate, and so pad there; those of preferences pad on the right."""


def find(name: str) -> Any:
    """A class of TRL's, stable or not."""
    if hasattr(trl, name):
        return getattr(trl, name)
    kind = name.removesuffix("Trainer").removesuffix("Config").lower()
    return getattr(importlib.import_module(f"trl.experimental.{OTHER_FOLDERS.get(kind, kind)}"), name)


OTHER_FOLDERS = {"onlinedpo": "online_dpo", "iwopd": "iw_opd"}


def run(setup: Setup, rebase: Callable[[Any], Any], models: Models, folder: Path) -> Any:
    """Train under one library and record all that the two have to agree on."""
    found = []
    for resumes in (False, True)[: 1 + setup.resumes]:
        # A checkpoint's reader draws what the first run drew.
        trainer, recorder = build(setup, rebase, models, folder)
        if setup.trainer == "IterativeSFT":
            texts = list(rows(setup.data)["text"])
            for start in (0, 4):
                trainer.step(texts=texts[start : start + 4], texts_labels=texts[start : start + 4])
        else:
            trainer.train(**({"resume_from_checkpoint": str(folder / "checkpoint-2")} if resumes else {}))
        found.append(recorded(trainer, recorder, folder))
    generators = [np.array(random.getstate()[1]), torch.get_rng_state()]
    record = {"runs": found, "files": record_files(folder), "generators": plain(generators)}
    return without_speed(record)


def build(setup: Setup, rebase: Callable[[Any], Any], models: Models, folder: Path) -> Any:
    """A trainer, and what records its events."""
    args = rebase(find(f"{setup.trainer}Config"))(str(folder), **copy.deepcopy({**THREE, **setup.args}))
    side = "left" if setup.trainer in ON_THE_LEFT else "right"
    parts = {"processing_class": tokenizer(side), **setup.parts(models)}
    if setup.trainer != "IterativeSFT":
        parts["train_dataset"] = rows(setup.data)
    if setup.evaluates:
        parts["eval_dataset"] = rows(setup.data, 4, seed=1)
    if "total_episodes" in setup.args:
        tokens = rows(setup.data).map(
            lambda row: {"input_ids": tokenizer()(row["prompt"])["input_ids"]}, remove_columns=["prompt"]
        )
        parts |= {"train_dataset": tokens, "eval_dataset": tokens.select(range(4))}
    trainer = rebase(find(f"{setup.trainer}Trainer"))(
        **{"config" if "policy" in parts else "args": args}, **parts
    )
    recorder = EventRecorder()
    trainer.add_callback(recorder)
    return trainer, recorder


def recorded(trainer: Any, recorder: EventRecorder, folder: Path) -> Any:
    """What a trainer holds after its run."""
    reference = getattr(trainer, "ref_model", None)
    content = {
        "events": recorder.events,
        "log_history": trainer.state.log_history,
        "weights": trainer.model.state_dict(),
        "reference": reference and reference.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "steps": [trainer.state.global_step, trainer.state.epoch],
    }
    return plain(content, folder)


def without_speed(record: Any) -> Any:
    """A record without the episodes per second that PPO logs."""
    if isinstance(record, list):
        return [without_speed(item) for item in record]
    if isinstance(record, dict):
        return {name: without_speed(item) for name, item in record.items() if name != "eps"}
    return record


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("setup", TAKEN, ids=str)
def test_equal(setup: Setup, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with isolated():
        expected = run(setup, lambda kind: kind, models, tmp_path / "theirs")
    with isolated(forgiving=False):
        ours = run(setup, compat.on_lightning, models, tmp_path / "ours")
    assert_equal(ours, expected)
    assert len(ours["runs"][0]["events"]) > 2


def test_trained_by_lightning(models: Models, tmp_path: Path) -> None:
    setup = next(setup for setup in TAKEN if setup.trainer == "DPO")
    with isolated(forgiving=False):
        trainer, _ = build(setup, compat.on_lightning, models, tmp_path)
        trainer.train()
    assert trainer.lightning.global_step == trainer.state.global_step == 4


def test_without_vllm_trl_says_so(models: Models, tmp_path: Path) -> None:
    setup = Setup("GRPO", "prompt", {**GENERATES, "use_vllm": True}, rewarded)
    with isolated(forgiving=False), pytest.raises(ImportError, match="vLLM is not available"):
        build(setup, compat.on_lightning, models, tmp_path)
