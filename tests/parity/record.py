"""Runs a set-up under one API and returns all that the two libraries have to agree on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from transformers.utils import logging

from compat.checkpoint.layout import OURS, is_one_of
from tests.parity.bench import Api, Bench, Setup
from tests.parity.plain import differences, plain, plain_generators

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Record = dict[str, Any]

STATE = (
    "epoch",
    "global_step",
    "max_steps",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "train_batch_size",
    "num_train_epochs",
    "num_input_tokens_seen",
    "total_flos",
    "best_metric",
    "best_global_step",
    "best_model_checkpoint",
    "is_local_process_zero",
    "is_world_process_zero",
    "stateful_callbacks",
)


def record(setup: Setup, api: Api, out_dir: Path) -> Record:
    """Run a set-up as if in a process of its own, and record it.

    Args:
        setup: what to run.
        api: under whose classes.
        out_dir: an empty folder for the run.
    """
    # What transformers 4.x leaves in the environment is forgiven; what ours leaves is for the
    # leak check of all tests to find.
    with isolated(forgiving=api.name == "transformers"):
        return run(setup, api, out_dir)


def run(setup: Setup, api: Api, out_dir: Path) -> Record:
    """Run a set-up in the process as it is, and record it.

    Args:
        setup: what to run.
        api: under whose classes.
        out_dir: an empty folder for the run.
    """
    bench = Bench(api, setup, out_dir)
    return recorded(bench, bench.run())


def recorded(bench: Bench, result: Any = None) -> Record:
    """Record the trainers and files of a bench as they are now.

    Args:
        bench: after its script has run.
        result: what the script returned.
    """
    home = bench.out_dir
    # Taken first: reading files below must not count as part of the run.
    generators = plain_generators()
    return {
        "result": plain(result, home),
        "trainers": [record_trainer(trainer, recorder.events, home) for trainer, recorder in bench.trainers],
        "files": record_files(home),
        "generators": generators,
    }


def record_trainer(trainer: Any, events: list[dict[str, Any]], home: Path) -> Record:
    """Record what a trainer holds after its script.

    Args:
        trainer: of either library.
        events: what its recorder noted.
        home: the folder of the run.
    """
    optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
    content = {
        "events": events,
        "log_history": trainer.state.log_history,
        "state": {name: getattr(trainer.state, name, None) for name in STATE},
        "weights": trainer.model.state_dict(),
        "gradients": {name: p.grad for name, p in trainer.model.named_parameters()},
        "training": trainer.model.training,
        "optimizer": optimizer and optimizer.state_dict(),
        "scheduler": scheduler and scheduler.state_dict(),
        "callbacks": [type(c).__name__ for c in trainer.callback_handler.callbacks],
        "train_batch_size": trainer._train_batch_size,
    }
    return plain(content, home)


def record_files(home: Path) -> Record:
    """Record every file of HF's below a folder: the content of those that hold numbers, the names of all.

    Args:
        home: the folder of the run.
    """
    files = sorted(path for path in home.rglob("*") if path.is_file() and not is_one_of(path.name, OURS))
    return {str(path.relative_to(home)): plain(_content(path), home) for path in files}


def _content(path: Path) -> Any:
    if path.name == "pytorch_model.bin":
        return torch.load(path)
    match path.suffix:
        case ".safetensors":
            return load_file(path)
        case ".pt" | ".pth":
            return torch.load(path, weights_only=False)
        case ".json":
            return json.loads(path.read_text())
        case ".npy":
            return np.load(path)
        case _:
            return "present"


def assert_equal(ours: Record, theirs: Record) -> None:
    """Fail with the first paths at which two records differ.

    Args:
        ours: what compat did.
        theirs: what transformers did.
    """
    found = list(differences(ours, theirs))
    shown = "\n".join(found[:5])
    assert not found, f"{len(found)} differences; the first are\n{shown}"


@contextlib.contextmanager
def isolated(*, forgiving: bool = True) -> Iterator[None]:
    """Start from the seeds and singletons of a new process and put back what a run has changed.

    Args:
        forgiving: put back the environment variables as well.
    """
    environment, verbosity = dict(os.environ), logging.get_verbosity()
    fresh_singletons()
    seed()
    try:
        yield
    finally:
        if forgiving:
            os.environ.clear()
            os.environ.update(environment)
        logging.set_verbosity(verbosity)
        torch.use_deterministic_algorithms(mode=False)
        torch.backends.cudnn.deterministic = False
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        fresh_singletons()


def seed(number: int = 0) -> None:
    """Seed the generators of python, numpy and torch.

    Args:
        number: the seed.
    """
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 (the generator that transformers seeds and draws from)
    torch.manual_seed(number)


def fresh_singletons() -> None:
    """Forget what accelerate keeps for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
