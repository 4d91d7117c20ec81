"""`compat explain --NAME VALUE`: one argument, explained without imports.

Where neither the machine nor the exact release matters, the tables have the whole answer.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from compat.arguments.fields import FIELDS, GENERATIONS
from compat.arguments.optimizers import OPTIMIZERS
from compat.arguments.resolve import resolve
from compat.errors import ArgumentError
from compat.translate import plan
from compat.upstream.environment import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compat.translate import Setting

MACHINES = (Facts(), Facts(device_type="cuda"), Facts(device_type="cuda", devices=2))
"""The machines on which an answer must be the same."""

BY_STEPS = ("no", "steps", "epoch")
LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")

CHOICES: dict[str, tuple[str, ...]] = {
    "eval_strategy": BY_STEPS,
    "evaluation_strategy": BY_STEPS,
    "logging_strategy": BY_STEPS,
    "save_strategy": (*BY_STEPS, "best"),
    "hub_strategy": ("end", "every_save", "checkpoint", "all_checkpoints"),
    "lr_scheduler_type": (
        *("linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant"),
        *("constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "warmup_stable_decay"),
    ),
    "log_level": LEVELS,
    "log_level_replica": LEVELS,
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "ddp_backend": ("gloo", "mpi"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "optim": tuple(name for name, optimizer in OPTIMIZERS.items() if not optimizer.releases),
}
"""Argument → its values that every supported release knows. Of another value, the installed one decides."""

SWITCH = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}

READERS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: SWITCH[text.lower()],
    "int": int,
    "float": float,
    "str": str,
}
"""Kind of a field → the function that reads a word of the command line, as HF's parser does."""


def explained(words: Sequence[str]) -> Setting | None:
    """Return what becomes of the only argument of a command line.

    Args:
        words: an option and its value.

    Returns:
        The decision; None where it depends on the machine or on the release, or where there is a problem: the
        whole plan then has the answer.
    """
    try:
        name, value = _read(words)
        found = [
            _decision(name, value, generation, facts) for generation in _installed() for facts in MACHINES
        ]
    except (LookupError, ValueError, ArgumentError, importlib.metadata.PackageNotFoundError):
        return None
    return found[0] if all(one == found[0] for one in found) else None


def _read(words: Sequence[str]) -> tuple[str, Any]:
    option, *values = [part for word in words[:1] for part in word.split("=", 1)] + list(words[1:])
    field = FIELDS[option.removeprefix("--").replace("-", "_")]
    kind = field.kind.rstrip("?")
    if not option.startswith("--") or len(values) > 1 or any(value.startswith("-") for value in values):
        msg = "not one argument with its value"
        raise ValueError(msg)
    if not values:
        # Of a switch that may also be None, the value is wanted.
        return field.name, {"bool": True}[field.kind]
    value = READERS[kind](values[0])
    if field.name in CHOICES and value not in CHOICES[field.name]:
        msg = "not a value of every release"
        raise ValueError(msg)
    return field.name, value


def _installed() -> tuple[str, ...]:
    """Return the generations between which the installed release lies."""
    major, minor = importlib.metadata.version("transformers").split(".")[:2]
    if int(major) >= int(GENERATIONS[-1]):
        return GENERATIONS[-1:]
    return GENERATIONS[1:-1] if f"{major}.{minor}" == GENERATIONS[1] else GENERATIONS[1:]


def _decision(name: str, value: object, generation: str, facts: Facts) -> Setting:
    native = {
        field.name: field.default_in(generation)
        for field in FIELDS.values()
        if generation in field.generations
    }
    made = plan(resolve({name: value}, native, {}), facts)
    (setting,) = (setting for setting in made.settings if setting.field == name)
    return setting
