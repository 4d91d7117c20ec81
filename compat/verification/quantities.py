"""What is compared, as a table."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Quantity:
    """One kind of value that both Trainers have to agree on.

    Attributes:
        key: its name in a JSON report.
        title: its name in a table.
        noun: how one of its values is called in a sentence; `{name}` is its name.
    """

    key: str
    title: str
    noun: str


QUANTITIES: Final = (
    Quantity("loss", "losses", "loss of {name}"),
    Quantity("grad_norm", "gradient norms", "gradient norm"),
    Quantity("learning_rate", "learning rates", "learning rate"),
    Quantity("weight_sum", "weights after each step", "sum of all weights after the step"),
    Quantity("metrics", "log history, metrics", "`{name}` in the log history"),
    Quantity("events", "events, control", "event {name}"),
    Quantity("state", "state of the Trainer", "`{name}` of the Trainer's state"),
    Quantity("weights", "final weights", "weights `{name}`"),
    Quantity("optimizer", "optimizer state", "optimizer state `{name}`"),
    Quantity("scheduler", "scheduler state", "scheduler state `{name}`"),
    Quantity("generators", "random states", "random state `{name}`"),
    Quantity("files", "checkpoints, saved files", "file {name}"),
    Quantity("passes", "evaluations, predictions", "result of {name}"),
)
"""In the order in which differences of one step are reported."""

ORDER: Final = {quantity.key: place for place, quantity in enumerate(QUANTITIES)}

PER_STEP: Final = ("loss", "grad_norm", "learning_rate")
"""Keys of the log history that are quantities of their own; all others are metrics."""

MEASURED: Final = (
    "*_runtime",
    "*_per_second",
    "*_per_second_per_gpu",
    "*_preparation_time",
    "*_jit_compilation_time",
    "*_time",
    "*_mem_*",
    "step_time",
    "*/time/*",
    "time/*",
    "profiling/*",
)
"""Names whose values are readings of a clock, or of memory: they are left out."""


def is_measured(name: str) -> bool:
    """Whether a value is a reading of a clock or of memory."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in MEASURED)
