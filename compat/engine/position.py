"""Where a run stands in its data, precisely enough to resume as if it had never stopped.

HF's checkpoint holds the number of completed update steps and the random states at the save. That is enough
if drawing a batch draws no random number. Where a collator masks tokens, a dataset crops images or a sampler
shuffles without a generator of its own, three moments count: when the epoch's order was drawn, when the batch
that the loader has prefetched was drawn, and the save. In addition, data of unknown length may have
restarted, which the number of update steps does not show.
"""

from __future__ import annotations

import collections
import ctypes
import itertools
import random
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from torch.utils.data import BatchSampler, DataLoader

from compat.engine.limits import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from compat.engine.loader_state import Generators, States
    from compat.upstream.devices import RandomStates
    from compat.upstream.values import Batch, Loader

Draws = dict[str, Any]
"""States of the random number generators of Python, NumPy and torch, and of a loader's own, as plain data
that can be loaded without pickled classes."""


@dataclass
class Position:
    """What `data_state.pth` holds.

    Attributes:
        epoch: index of the epoch.
        batches: completed micro-batches of that epoch.
        is_over: whether that epoch has ended, including the work of callbacks and HF at its end.
        depends_on: what the count of batches depends on; a run that differs in it computes the count as HF
            does.
        order: random states when the epoch's order was drawn.
        ahead: random states when the prefetched batch was drawn; None if no batch is prefetched.
        loader: state of a loader that can load it; None for others.
        sequences: the place of processes that share sequences, in place of `order`, `ahead` and `loader`.
        own: states of the loader's own generators at the save; those of the process are in HF's file.
        leaves_epoch: whether the run had decided to skip the rest of that epoch.
        has_ended: whether the run had decided to end there, before its last update step.
        rows: the rows of the dataset, if it has a length.
        devices: random states of the devices at the save; HF's file has those of some device types only.
    """

    epoch: int
    batches: int
    is_over: bool
    depends_on: dict[str, int | None]
    order: Draws | None = None
    ahead: Draws | None = None
    loader: Loader = None
    sequences: dict[str, Any] | None = None
    own: States | None = None
    leaves_epoch: bool = False
    has_ended: bool = False
    rows: int | None = None
    devices: RandomStates = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The position as plain data."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Position:
        """Create a position from the result of `state_dict`; keys of later releases are ignored."""
        return cls(**{each.name: state[each.name] for each in fields(cls) if each.name in state})


class _NumpysState:
    """The state of NumPy's global generator.

    Reading it takes most of the time of reading all three, and it seldom changes: the words of the generator
    are compared first, through the address that NumPy reports.
    """

    _SIZE = 625 * 4
    """Bytes of an MT19937: 624 words and a position."""

    def __init__(self) -> None:
        self._words = b""
        self._state: dict[str, Any] = {}

    def forget(self) -> None:
        """Read the state again the next time."""
        self._words = b""

    def read(self) -> dict[str, Any]:
        """Return the state, with its words as a tensor."""
        words = self._read_words()
        # With a value cached for the next `normal`, a draw may leave the words unchanged.
        if not words or words != self._words or self._state["has_gauss"]:
            found: Any = np.random.get_state(legacy=False)  # noqa: NPY002
            keys = torch.from_numpy(found["state"]["key"].astype(np.int64))
            self._state = {**found, "state": {**found["state"], "key": keys}}
            self._words = words
        return self._state

    def _read_words(self) -> bytes:
        current = getattr(np.random, "get_bit_generator", None)
        if current is None or type(generator := current()) is not np.random.MT19937:
            return b""
        return ctypes.string_at(generator.ctypes.state_address, self._SIZE)


_numpys_state = _NumpysState()


def draws(generators: Generators, *, within_epoch: bool = False) -> Draws:
    """Return the current states of the random number generators.

    Args:
        generators: the loader's own.
        within_epoch: whether, since the last read, numbers have only been drawn and no state has been
            restored.
    """
    if not within_epoch:
        _numpys_state.forget()
    return {
        "python": random.getstate(),
        "numpy": _numpys_state.read(),
        "torch": torch.random.get_rng_state(),
        "own": generators.states(),
    }


def redraw(state: Draws, generators: Generators) -> None:
    """Restore the states of the random number generators.

    Args:
        state: the result of `draws`.
        generators: the loader's own.
    """
    # First, since it may make a batch.
    generators.put_back(state.get("own", {}))
    random.setstate(state["python"])
    numpy = state["numpy"]
    keys = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": keys}})  # noqa: NPY002
    torch.random.set_rng_state(state["torch"])


def looks_ahead(loader: Loader) -> bool:
    """Whether a loader prefetches a batch: accelerate's does, to detect the last one."""
    return isinstance(plain(loader), (DataLoaderShard, DataLoaderDispatcher))


def draws_here(loader: Loader) -> bool:
    """Whether batches are made in this process, with its random numbers, rather than by workers."""
    return not getattr(loader, "num_workers", 0)


def wake(loader: Loader, generators: Generators) -> None:
    """Start persistent workers, if a run resumes in a later epoch than the one they were started in.

    Starting workers draws a random number; restarting persistent workers draws none.

    Args:
        loader: the loader.
        generators: its own.
    """
    base = getattr(plain(loader), "base_dataloader", plain(loader))
    if not isinstance(base, DataLoader) or not base.num_workers or not base.persistent_workers:
        return
    if base._iterator is None:
        state = draws(generators)
        iter(base)
        redraw(state, generators)


def is_stateful(loader: Loader) -> bool:
    """Whether a loader can resume from its own state; accelerate's loaders always have the methods."""
    has_methods = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    return has_methods and bool(getattr(loader, "use_stateful_dataloader", True))


class Batches:
    """The batches of an epoch, with a record of the random states that led to them.

    Args:
        iterator: yields batches.
        notes: whether the prefetched batch is drawn in this process, so that its random states matter.
        generators: the loader's own.

    Attributes:
        ahead: random states when the last batch of the window was requested, which is when the loader draws
            the next one.
    """

    def __init__(self, iterator: Iterator[Any], *, notes: bool, generators: Generators) -> None:
        self._iterator = iterator
        self.generators = generators
        self._notes = notes
        self._left = 0
        self._is_first = True
        self.ahead: Draws | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Batch:
        self._left -= 1
        # Reading the states takes about 40 µs, so it is done once for each window.
        if self._left == 0 and self._notes:
            self.ahead = draws(self.generators, within_epoch=True)
        batch = next(self._iterator)
        if self._is_first:
            self._is_first = False
            self.generators.search()
        return batch

    def expect(self, count: int) -> None:
        """Set how many batches the next window takes."""
        self._left = count


class Prompted:
    """A loader that calls functions right before certain batches are drawn.

    Args:
        loader: the loader.
        before: index of a batch → the function to call; the index after the last batch is allowed.
        skip: how many batches are drawn first and discarded.
    """

    def __init__(self, loader: Loader, before: Mapping[int, Callable[[], None]], skip: int = 0) -> None:
        self._loader = loader
        self._before = before
        self._skip = skip

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return max(0, len(self._loader) - self._skip)

    def __iter__(self) -> Iterator[Any]:
        batches, drawn = _left_out(self._loader, self._skip)
        for index in sorted(self._before):
            for batch in itertools.islice(batches, index - drawn):
                drawn += 1
                yield batch
            if drawn < index:
                return
            self._before[index]()
        yield from batches


def _left_out(loader: Loader, count: int) -> tuple[Iterator[Any], int]:
    """Skip the first batches of a loader; return the rest, and how many were skipped."""
    items: Iterator[Any]
    batches: Iterator[Any]
    size, is_cut = 1, False
    if type(loader) is BatchSampler:
        # Its batches are slices of its indices, so no lists are needed.
        size, is_cut = loader.batch_size, loader.drop_last
        items = iter(loader.sampler)
        batches = iter(BatchSampler(items, size, is_cut))
    else:
        items = batches = iter(loader)
    counter = itertools.count()
    # There may be millions to skip: this needs no Python step for each.
    collections.deque(zip(itertools.islice(items, count * size), counter, strict=False), maxlen=0)
    drawn = next(counter)
    return batches, drawn // size if is_cut else -(-drawn // size)
