"""A batch and its place within its accumulation window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compat.upstream.values import Batch, NumItems


@dataclass(slots=True)
class MicroBatch:
    """A batch and its place in its accumulation window and epoch.

    Attributes:
        inputs: the batch as HF's collator made it.
        num_items: what the whole window counts, `num_items_in_batch` in HF's words.
        step: its index in the epoch, in micro-steps.
        opens: whether it is the first of its window.
        closes: whether it is the last one fetched for its window.
        syncs: whether the optimizer steps after it.
    """

    inputs: Batch
    num_items: NumItems
    step: int
    opens: bool
    closes: bool
    syncs: bool
