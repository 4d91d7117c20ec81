"""How long a training run is: counts of update steps, and the numbers that HF works out of its arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The extent of one training run.

    Attributes:
        num_train_epochs: epochs, a started one counted whole.
        num_update_steps_per_epoch: update steps (optimizer steps) in an epoch.
        num_examples: samples in the train dataset.
        num_train_samples: samples seen in the whole run.
        total_train_batch_size: samples in one update step, over all processes.
        steps_in_epoch: micro-steps (batches of one process) in an epoch.
        max_steps: update steps in the whole run.
        num_train_tokens: tokens in the whole run, where they are counted beforehand.
    """

    num_train_epochs: int
    num_update_steps_per_epoch: int
    num_examples: int
    num_train_samples: float
    total_train_batch_size: int
    steps_in_epoch: int
    max_steps: int
    num_train_tokens: float | None = None

    @property
    def epochs(self) -> int:
        """Epochs as a reader counts them: HF says "endless" where update steps set the length."""
        return min(self.num_train_epochs, -(-self.max_steps // max(self.num_update_steps_per_epoch, 1)))


def update_steps(micro_steps: float, sizes: Iterable[int]) -> float:
    """The update steps of some epochs.

    Args:
        micro_steps: batches of one process in an epoch; may be infinite.
        sizes: micro-steps of an accumulation window, for each of the epochs.
    """
    return sum(math.inf if math.isinf(micro_steps) else -(-int(micro_steps) // size) for size in sizes)
