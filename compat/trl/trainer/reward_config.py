"""`RewardConfig`: the arguments of `RewardTrainer`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from compat.arguments import TrainingArguments
from compat.arguments.setters import refuses_unknown_names

__all__ = ["RewardConfig"]


@refuses_unknown_names
@dataclass(repr=False)
class RewardConfig(TrainingArguments):
    """Training arguments with an additional one for reward models.

    Args:
        max_length: the maximum length to which the default collator pads, in tokens.

    Raises:
        ArgumentError: as in `TrainingArguments`.
    """

    max_length: int | None = dataclasses.field(
        default=None, metadata={"help": "Longest sequence that the default collator pads to, in tokens."}
    )
