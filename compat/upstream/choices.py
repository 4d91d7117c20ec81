"""The valid values of arguments in the installed transformers, read from its enumerations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

if TYPE_CHECKING:
    from enum import Enum

_ENUMS: dict[str, type[Enum]] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}

CHOICES: dict[str, tuple[str, ...]] = {
    name: tuple(str(member.value) for member in enum) for name, enum in _ENUMS.items()
}
"""Argument → its values."""
