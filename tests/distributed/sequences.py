"""One process of a job: trains a small model whose sequences processes share, and writes what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig

from compat.upstream import ulysses
from compat.upstream.environment import overlaid
from tests.distributed.sharded import compile_nothing, llama, make, whole, zero
from tests.parity.bench import load_api

if TYPE_CHECKING:
    from collections.abc import Mapping

ROWS = 24
IGNORED = -100


def rows(count: int, longest: int = 16) -> list[dict[str, torch.Tensor]]:
    """Sequences of tokens that count up, of 4 to `longest` tokens where it is not 16."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        start = torch.randint(0, 62, (1,), generator=generator)
        length = int(torch.randint(4, longest + 1, (1,), generator=generator)) if longest != 16 else 16
        found.append({"input_ids": 2 + (start + torch.arange(length)) % 62})
    return found


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad to an even length, and tell each token its position."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    length = longest + longest % 2
    tokens = torch.zeros(len(samples), length, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample["input_ids"])] = sample["input_ids"]
        labels[row, : len(sample["input_ids"])] = sample["input_ids"]
    positions = torch.arange(length).repeat(len(samples), 1)
    return {"input_ids": tokens, "labels": labels, "position_ids": positions}


def undivided(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: value[:, :-1] for name, value in collate(samples).items()}


def without_positions(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in collate(samples).items() if name != "position_ids"}


@dataclass(frozen=True)
class Setup:
    """A run.

    Attributes:
        args: arguments beside the common ones.
        like: the run that it must equal; none for one that others are held against.
        longest: tokens of the longest sequence; all have 16 where it is 16.
        resume: `name/checkpoint-N` of another run to go on from.
        collator: makes batches.
        evaluates_first: whether `evaluate` comes before `train`.
        launched: variables that a launcher sets.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    like: str = ""
    longest: int = 16
    resume: str = ""
    collator: Any = collate
    evaluates_first: bool = False
    launched: Mapping[str, str] = field(default_factory=dict)


def shared(stage: int, size: int = 2, **more: Any) -> dict[str, Any]:
    """Arguments that ask for a stage of ZeRO, and for sequences that processes share."""
    handler = DeepSpeedSequenceParallelConfig(sp_attn_implementation="sdpa")
    mesh = ParallelismConfig(sp_size=size, sp_backend="deepspeed", sp_handler=handler, **more)
    return {**zero(stage), "parallelism_config": mesh}


LAUNCHED = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_SP_SIZE": "2",
    "PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION": "sdpa",
}
SAVING = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 4}
ACCUMULATING = {"gradient_accumulation_steps": 2}
EPOCHS = {**ACCUMULATING, **SAVING, "max_steps": -1, "num_train_epochs": 3}
SETUPS: Mapping[str, Setup] = MappingProxyType(
    {
        "one": Setup(),
        "one-accumulating": Setup(ACCUMULATING),
        "one-varying": Setup(longest=13),
        "zero-1": Setup(shared(1), like="one"),
        "zero-2": Setup({**shared(2), **SAVING}, like="one"),
        "zero-2-resumed": Setup({**shared(2), **SAVING}, resume="zero-2/checkpoint-3"),
        "zero-2-epochs": Setup({**shared(2), **EPOCHS}),
        "zero-2-epochs-resumed": Setup({**shared(2), **EPOCHS}, resume="zero-2-epochs/checkpoint-9"),
        "zero-2-epochs-resumed-between": Setup({**shared(2), **EPOCHS}, resume="zero-2-epochs/checkpoint-6"),
        "zero-2-launched": Setup(zero(2), like="one", launched=LAUNCHED),
        "zero-2-varying": Setup(shared(2), like="one-varying", longest=13),
        "zero-3": Setup({**shared(3), **ACCUMULATING, **SAVING}, like="one-accumulating"),
        "zero-3-resumed": Setup({**shared(3), **ACCUMULATING, **SAVING}, resume="zero-3/checkpoint-3"),
        "zero-3-evaluated-first": Setup(
            {**shared(3), **ACCUMULATING}, like="one-accumulating", evaluates_first=True
        ),
        "undivided": Setup({**shared(2), "max_steps": 2}, collator=undivided),
        "without-positions": Setup(shared(2), collator=without_positions),
    }
)


def train(name: str, api: Any, runs: Path) -> dict[str, Any]:
    """Train one set-up.

    Args:
        name: of the set-up.
        api: where Trainer and arguments come from.
        runs: the folder of all runs.
    """
    setup = SETUPS[name]
    args = api.TrainingArguments(
        output_dir=str(runs / name),
        **{
            "use_cpu": True,
            "max_steps": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "seed": 3,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 4,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            **setup.args,
        },
    )
    if "deepspeed" in setup.args and api.name == "transformers":
        import deepspeed

        deepspeed.init_distributed("gloo")
    trainer = api.Trainer(
        model=make(llama),
        args=args,
        train_dataset=rows(ROWS, setup.longest),
        eval_dataset=rows(8, setup.longest),
        data_collator=setup.collator,
    )
    first = trainer.evaluate()["eval_loss"] if setup.evaluates_first else None
    trainer.train(resume_from_checkpoint=str(runs / setup.resume) if setup.resume else None)
    history = trainer.state.log_history
    found = {
        "first": first,
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in history if "loss" in entry],
        "evaluations": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "evaluation": trainer.evaluate()["eval_loss"],
        "epoch": trainer.state.epoch,
        "step": trainer.state.global_step,
        "kind": trainer.accelerator.distributed_type.value,
    }
    weights = {key: whole(parameter) for key, parameter in trainer.model.named_parameters()}
    if args.process_index == 0:
        torch.save(weights, runs / f"{name}.pt")
    return found


def attempt(name: str, api: Any, runs: Path) -> dict[str, Any]:
    """Train one set-up, and write down the error that it ends with."""
    try:
        with overlaid(SETUPS[name].launched):
            return train(name, api, runs)
    except Exception as error:  # noqa: BLE001 (any error is the result here)
        return {"error": f"{type(error).__name__}: {error}"}


def main(library: str, folder: str, names: list[str]) -> None:
    """Train the set-ups one after the other.

    Args:
        library: `transformers` or `compat`.
        folder: where runs and records go.
        names: the set-ups.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    compile_nothing()
    for name in names:
        is_hf = library == "transformers"
        # HF's Trainer trains one model in a process: DeepSpeed refuses to form its groups again.
        with ulysses.own_attention() if is_hf else contextlib.nullcontext():
            ulysses.release()
            found = attempt(name, load_api(library), Path(folder))
        (Path(folder) / f"{name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
        if dist.is_initialized():
            dist.barrier()
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:3], sys.argv[3:])
