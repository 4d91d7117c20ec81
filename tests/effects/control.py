"""When a run logs, evaluates and saves, and what its logs hold."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers

from tests import small
from tests.effects import parts
from tests.effects.effect import Bench, Effect


def logged(bench: Bench) -> list[int]:
    """The steps that are logged, of a run with two steps an epoch."""
    history = bench.trained(train_dataset=small.rows(4)).state.log_history
    return [entry["step"] for entry in history if "loss" in entry]


def evaluated(bench: Bench) -> list[int]:
    """The steps that are evaluated after, of a run with two steps an epoch."""
    history = bench.trained(train_dataset=small.rows(4)).state.log_history
    return [entry["step"] for entry in history if "eval_loss" in entry]


def saved(bench: Bench) -> list[str]:
    """The checkpoints of a run with two steps an epoch."""
    bench.trained(train_dataset=small.rows(4))
    return sorted(path.name for path in Path("out").glob("checkpoint-*"))


def shows_bar(bench: Bench) -> bool:
    """Whether a bar counts the steps."""
    with contextlib.redirect_stderr(io.StringIO()) as shown, contextlib.redirect_stdout(io.StringIO()):
        bench.trained()
    return "2/2" in shown.getvalue()


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def kept_lines() -> Any:
    """Keep what transformers logs for its user."""
    handler, root = Kept(), logging.getLogger("transformers")
    root.addHandler(handler)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)


def announced(bench: Bench) -> bool:
    """Whether a training is announced."""
    transformers.logging.set_verbosity_warning()
    with kept_lines() as lines:
        bench.trained()
    return any("Running training" in line for line in lines)


def announces_on(**processes: int) -> Any:
    """How much is logged by a process that is not the first of all.

    Args:
        **processes: its number on its node, and among all.
    """

    def observe(bench: Bench) -> int:
        transformers.logging.set_verbosity_warning()
        for name, number in processes.items():
            bench.patch.setattr(transformers.TrainingArguments, name, property(lambda _, n=number: n))
        bench.trainer()
        return transformers.logging.get_verbosity()

    return observe


def tokens(bench: Bench) -> list[int | None]:
    """The tokens that each log entry of the training counts."""
    trainer = bench.trained(model=parts.Words(), train_dataset=parts.words())
    return [entry.get("num_input_tokens_seen") for entry in trainer.state.log_history]


def measures_tokens(bench: Bench) -> bool:
    """Whether the training tells its tokens a second."""
    trainer = bench.trained(model=parts.Words(), train_dataset=parts.words())
    return any("train_tokens_per_second" in entry for entry in trainer.state.log_history)


def measures_memory(bench: Bench) -> bool:
    """Whether the training tells its memory."""
    return "train_mem_cpu_alloc_delta" in bench.trainer().train().metrics


def tpu_reports(bench: Bench) -> list[str]:
    """What an evaluation prints of its TPU."""
    printed: list[str] = []
    for name, library in (
        ("xm", SimpleNamespace(master_print=printed.append)),
        ("met", SimpleNamespace(metrics_report=lambda: "busy")),
    ):
        bench.patch.setattr(f"transformers.trainer.{name}", library, raising=False)
    bench.trainer().evaluate()
    return printed


FOUR = {"max_steps": 4}
EVALUATES = {**FOUR, "eval_strategy": "steps"}
FIRST_OF_NODE = {"local_process_index": 0, "process_index": 1}
SECOND_OF_NODE = {"local_process_index": 1, "process_index": 1}
LEVELS = {"log_level": "info", "log_level_replica": "error"}

CONTROL = (
    Effect("logging_strategy", "epoch", logged, ([1, 2, 3, 4], [2, 4]), base=FOUR),
    Effect("logging_steps", 2, logged, ([], [2, 4]), base=FOUR),
    Effect("logging_first_step", True, logged, ([3], [1, 3]), base={**FOUR, "logging_steps": 3}),
    Effect("eval_strategy", "epoch", evaluated, ([], [2, 4]), base=FOUR),
    Effect(
        "evaluation_strategy",
        "epoch",
        evaluated,
        ([], [2, 4]),
        base=FOUR,
        replaced_by="eval_strategy",
        warns=True,
    ),
    Effect("eval_steps", 2, evaluated, ([1, 2, 3, 4], [2, 4]), base=EVALUATES),
    Effect("eval_delay", 3, evaluated, ([1, 2, 3, 4], [3, 4]), base=EVALUATES),
    Effect("eval_on_start", True, evaluated, ([], [0])),
    Effect("save_strategy", "epoch", saved, (["checkpoint-4"], ["checkpoint-2", "checkpoint-4"]), base=FOUR),
    Effect(
        "save_steps",
        3,
        saved,
        (["checkpoint-4"], ["checkpoint-3", "checkpoint-4"]),
        base={**FOUR, "save_strategy": "steps"},
    ),
    Effect("disable_tqdm", True, shows_bar, (True, False)),
    Effect("log_level", "info", announced, (False, True)),
    Effect("log_level_replica", "error", announces_on(**SECOND_OF_NODE), (logging.WARNING, logging.ERROR)),
    Effect(
        "log_on_each_node", False, announces_on(**FIRST_OF_NODE), (logging.INFO, logging.ERROR), base=LEVELS
    ),
    Effect("include_num_input_tokens_seen", True, tokens, ([None] * 3, [6, 12, 12])),
    Effect("include_num_input_tokens_seen", "all", tokens, ([None] * 3, [6, 12, 12]), note="all"),
    Effect(
        "include_num_input_tokens_seen", "non_padding", tokens, ([None] * 3, [4, 8, 8]), note="non-padding"
    ),
    Effect(
        "include_tokens_per_second",
        True,
        measures_tokens,
        (False, True),
        replaced_by="include_num_input_tokens_seen",
        warns=True,
    ),
    Effect("skip_memory_metrics", False, measures_memory, (False, True)),
    Effect("tpu_metrics_debug", True, tpu_reports, ([], ["busy"]), replaced_by="debug", warns=True),
    Effect("debug", "tpu_metrics_debug", tpu_reports, ([], ["busy"]), note="tpu"),
)
