"""What is saved, what is kept of it, and how a run goes on from it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers.trainer_callback import ExportableState

from tests import small
from tests.effects import parts
from tests.effects.effect import Bench, Effect


def checkpoints(folder: str = "out") -> list[str]:
    """The names of the checkpoints in a folder."""
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


def kept(bench: Bench) -> list[str]:
    """The checkpoints that are left after a run."""
    bench.trained()
    return checkpoints()


def saved_weights(bench: Bench) -> set[str]:
    """The file that weights are saved to."""
    bench.trained()
    return {"model.safetensors", "pytorch_model.bin"} & set(os.listdir("out/checkpoint-2"))


def saved_states(bench: Bench) -> set[str]:
    """The files of a checkpoint beside that of its weights."""
    bench.trained()
    return {"optimizer.pt", "scheduler.pt", "rng_state.pth"} & set(os.listdir("out/checkpoint-2"))


def where(bench: Bench) -> list[str]:
    """The folders that hold checkpoints after a run."""
    bench.trained()
    return [path.name for path in sorted(Path().iterdir()) if checkpoints(str(path))]


def second_node_saves(bench: Bench) -> bool:
    """Whether the first process of a second node saves a model."""
    for name, number in {"local_process_index": 0, "process_index": 1}.items():
        bench.patch.setattr(transformers.TrainingArguments, name, property(lambda _, n=number: n))
    bench.trainer().save_model("there")
    return Path("there/model.safetensors").exists()


class Counter(transformers.TrainerCallback, ExportableState):
    """Counts steps, and keeps its count with the checkpoints."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.count += 1

    def state(self) -> dict[str, Any]:
        return {"args": {"count": self.count}, "attributes": {}}


def counted(bench: Bench) -> int:
    """What a callback has counted at the end of a run that goes on from the second of four steps."""
    bench.trained(callbacks=[Counter()])
    trainer = bench.trainer(callbacks=[Counter()])
    trainer.train(resume_from_checkpoint="out/checkpoint-2")
    (counter,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, Counter))
    return counter.count


def steps_of_script(bench: Bench) -> int:
    """How many steps a script takes that hands on what it is told to go on from."""
    options = {**bench.options, "save_strategy": "steps", "save_steps": 1}
    Bench(
        {name: options[name] for name in options if name != "resume_from_checkpoint"}, bench.patch
    ).trained()
    args = bench.arguments()
    steps: list[int] = []
    note = parts.At("on_step_end", lambda args, state, control: steps.append(state.global_step))
    trainer = bench.trainer(args=args, callbacks=[note])
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return len(steps)


class Scores:
    """One score after another."""

    def __init__(self, *scores: float) -> None:
        self.scores = iter(scores)

    def __call__(self, given: Any) -> dict[str, float]:
        return {"score": next(self.scores)}


def scored(bench: Bench) -> Any:
    """A run of three steps; the second one is scored best, the first one worst."""
    return bench.trained(compute_metrics=Scores(1, 3, 2), train_dataset=small.rows(2))


def final_weights_are_of(bench: Bench) -> str:
    """The checkpoint whose weights the model has at last."""
    final = scored(bench).model.state_dict()
    for name in reversed(checkpoints()):
        saved = load_file(f"out/{name}/model.safetensors")
        if all(torch.equal(saved[key], final[key]) for key in final):
            return name
    return "none"


def best_metric(bench: Bench) -> str:
    """The metric whose value is held for the best."""
    state = scored(bench).state
    named = [key for entry in state.log_history for key in entry if entry[key] == state.best_metric]
    return next(key for key in named if key.startswith("eval_"))


def best(bench: Bench) -> str:
    """The checkpoint that is held for the best."""
    return Path(scored(bench).state.best_model_checkpoint).name


def saved_when_terminated(bench: Bench) -> tuple[int, bool]:
    """How many checkpoints a run leaves whose process is told to end after its first step, and if it ends."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = parts.At("on_step_begin", lambda args, state, control: state.global_step == 1 and terminate())
    try:
        trainer = bench.trainer(callbacks=[end])
        with contextlib.suppress(SystemExit):
            trainer.train()
        return len(checkpoints()), trainer.state.global_step < 4
    finally:
        signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    """Tell this process to end."""
    os.kill(os.getpid(), signal.SIGTERM)


EACH_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
SCORED = {**EACH_STEP, "eval_strategy": "steps", "learning_rate": 0.1}
LOADS_BEST = {**SCORED, "load_best_model_at_end": True, "metric_for_best_model": "score"}

CHECKPOINTS = (
    Effect("output_dir", "there", where, (["trainer_output"], ["there"]), base=EACH_STEP),
    Effect(
        "save_total_limit",
        2,
        kept,
        (["checkpoint-1", "checkpoint-2", "checkpoint-3"], ["checkpoint-2", "checkpoint-3"]),
        base=EACH_STEP,
    ),
    Effect(
        "save_safetensors",
        False,
        saved_weights,
        ({"model.safetensors"}, {"pytorch_model.bin"}),
        base=EACH_STEP,
        warns=True,
    ),
    Effect(
        "save_only_model",
        True,
        saved_states,
        ({"optimizer.pt", "scheduler.pt", "rng_state.pth"}, set()),
        base=EACH_STEP,
    ),
    Effect("save_on_each_node", True, second_node_saves, (False, True)),
    Effect(
        "restore_callback_states_from_checkpoint",
        True,
        counted,
        (2, 4),
        base={"save_strategy": "steps", "save_steps": 2, "max_steps": 4},
    ),
    Effect("resume_from_checkpoint", "out/checkpoint-1", steps_of_script, (3, 2), base={"max_steps": 3}),
    Effect(
        "load_best_model_at_end",
        True,
        final_weights_are_of,
        ("checkpoint-3", "checkpoint-2"),
        base={**SCORED, "metric_for_best_model": "score"},
    ),
    Effect(
        "metric_for_best_model",
        "score",
        best_metric,
        ("eval_loss", "eval_score"),
        base={**SCORED, "load_best_model_at_end": True},
    ),
    Effect("greater_is_better", False, best, ("checkpoint-2", "checkpoint-1"), base=LOADS_BEST),
    Effect(
        "enable_jit_checkpoint",
        True,
        saved_when_terminated,
        ((0, False), (1, True)),
        base={"max_steps": 4},
    ),
)
