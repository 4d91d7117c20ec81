"""Sequence parallel: the train data of processes that share sequences, and its place in a resumed run.

DeepSpeed's adapter takes a batch from each process of a group, and hands them out in turn, to each process
its slice of the sequences: as many micro-batches as the group has processes. The end of a pass over the data
answers one request without a batch, at whatever moment of an epoch, and the next request begins a pass. HF's
second epoch therefore begins with an empty window, and leaves the last window of its pass to the third epoch.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from compat.engine.limits import less, plain
from compat.engine.loader_state import Generators
from compat.engine.position import draws, redraw
from compat.engine.resumption import can_skip, draws_at_once
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compat.engine.position import Draws
    from compat.upstream.values import Batch, Loader

IGNORED = -100
"""The label of a token that is not predicted."""


class SharedSequences:
    """The micro-batches of a run, from DeepSpeed's adapter, and their place in the data.

    Args:
        adapter: `UlyssesSPDataLoaderAdapter` around a train dataloader, before its first batch.
        seed: tells a loader which pass comes next.

    Attributes:
        loader: the dataloader, which yields this process's batches.
        is_resumed: whether a place was restored.
        missed: micro-batches that windows of the current epoch requested where a pass was over.
    """

    def __init__(self, adapter: Any, seed: Callable[[Loader, int], None]) -> None:
        self.loader: Loader = adapter.dl
        self.is_resumed = False
        self.missed = 0
        self._adapter, self._seed = adapter, seed
        self._passes = self._drawn = 0
        self._order: Draws | None = None
        # Gloo gathers tensors of one shape alone.
        self._is_uneven = dist.get_backend(adapter.sp_group) == "gloo"
        adapter.iter = self._noted(adapter.iter)
        adapter.dl = _Passes(self.loader, self._begin_pass)

    @property
    def size(self) -> int:
        """The number of processes that share a sequence."""
        return int(self._adapter.sp_world_size)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            if self._is_uneven and not self._adapter.micro_batches:
                self._refill()
            batch: Batch = next(self._adapter)
        except StopIteration:
            self._passes += 1
            self._drawn, self._order = 0, None
            raise
        self._drawn += 1
        return batch

    def _refill(self) -> None:
        """Gather batches of unlike lengths, as `refill` of the adapter does where a backend compares none."""
        adapter = self._adapter
        try:
            batch = next(adapter.iter)
        except StopIteration:
            adapter.iter = iter(adapter.dl)
            raise
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(batch), group=adapter.sp_group)
        adapter.micro_batches.extend(_slice_of(each, adapter.sp_rank, self.size) for each in gathered)

    def place(self) -> dict[str, Any]:
        """The place in the data, as plain data."""
        return {
            "passes": self._passes,
            "drawn": self._drawn,
            "missed": self.missed,
            "order": self._order,
        }

    def go_to(self, place: dict[str, Any]) -> None:
        """Continue after the micro-batches that were handed out; changes random states.

        Args:
            place: the result of `place`.
        """
        self.is_resumed = True
        self._passes, self._drawn, self.missed = place["passes"], place["drawn"], place["missed"]
        self._seed(self.loader, self._passes)
        adapter, loader = self._adapter, self.loader
        adapter.micro_batches.clear()
        if self._drawn == 0:
            adapter.iter = self._noted(iter(loader))
            return
        if place["order"] is not None:
            redraw(place["order"], Generators(loader))
        seen, left = divmod(self._drawn, self.size)
        if can_skip(loader):
            loader = less(loader, seen, draws_at_once(plain(loader)))
        else:
            left = self._drawn
        batches = iter(loader)
        # The order is drawn with the first batch, ahead of what else draws random numbers.
        first = list(itertools.islice(batches, 1))
        adapter.iter = _checked(itertools.chain(first, batches), self.size)
        for _ in range(left):
            next(self)
        self._drawn, self._order = place["drawn"], place["order"]

    def _begin_pass(self) -> Iterator[Batch]:
        if self.is_resumed:
            # The pass in which the run resumed came from another loader.
            self._seed(self.loader, self._passes + 1)
        return self._noted(iter(self.loader))

    def _noted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches of a pass, with a note of the random states that its order is drawn from."""
        self._order = draws(Generators(self.loader))
        yield from _checked(batches, self.size)


class _Passes:
    """The dataloader that the adapter sees: `begin` returns the iterator of a pass."""

    def __init__(self, loader: Loader, begin: Callable[[], Iterator[Batch]]) -> None:
        self._loader, self._begin = loader, begin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return self._begin()


def _slice_of(batch: dict[str, Any], rank: int, size: int) -> Batch:
    """Return a process's slice of a batch, with each label at the token that predicts it.

    Raises:
        ArgumentError: the sequences cannot be divided.
    """
    length = batch["input_ids"].shape[1]
    if length % size:
        msg = (
            f"`parallelism_config` with sp_size={size}: a batch has sequences of {length} tokens, which are "
            f"not to be divided by {size}. Have the `data_collator` pad to a multiple of {size}."
        )
        raise ArgumentError(msg)
    labels = torch.nn.functional.pad(batch.pop("labels"), (0, 1), value=IGNORED)
    batch["shift_labels"] = labels[..., 1:].contiguous()
    own = slice(length // size * rank, length // size * (rank + 1))
    return {name: value[:, own] if torch.is_tensor(value) else value for name, value in batch.items()}


def _checked(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Yield batches, unless their tokens do not tell their positions.

    Raises:
        ArgumentError: each process would take its slice of a sequence for the begin of one.
    """
    for batch in batches:
        if "position_ids" not in batch:
            msg = (
                f"`parallelism_config` with sp_size={size}: the batches have no `position_ids`, and each "
                "process would count the tokens of its slice from 0. Give a `data_collator` that adds them: "
                "`torch.arange(length).expand(rows, length)`; packed sequences count anew at each document."
            )
            raise ArgumentError(msg)
        yield batch
