"""`RewardConfig`: the arguments of a `RewardTrainer`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from compat.arguments import TrainingArguments
from compat.arguments.setters import refuses_unknown_names

__all__ = ["RewardConfig"]


@refuses_unknown_names
@dataclass(repr=False)
class RewardConfig(TrainingArguments):
    """The arguments of a training run, and one of a reward model's.

    Args:
        max_length: longest sequence that the default collator pads to, in tokens.

    Raises:
        ArgumentError: as `TrainingArguments`.
    """

    max_length: int | None = dataclasses.field(
        default=None, metadata={"help": "Longest sequence that the default collator pads to, in tokens."}
    )
