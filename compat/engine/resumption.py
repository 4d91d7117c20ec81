"""The remaining batches of the epoch in which a run resumes."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from accelerate.data_loader import DataLoaderDispatcher, SkipBatchSampler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from compat.engine.limits import less, plain
from compat.engine.loader_state import Generators, LoadedState, tells_all
from compat.engine.position import Prompted, draws, draws_here, is_stateful, looks_ahead, redraw

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.engine.position import Batches, Position
    from compat.upstream.values import Loader


class Way(Enum):
    """How a loader reaches the first unseen batch."""

    STATE = auto()
    """The loader loads its own state."""
    SKIP = auto()
    """The loader skips the earlier batches; data without indices is drawn and discarded."""
    REPLAY = auto()
    """The loader draws all batches again, and the earlier ones are discarded here."""


class Resumed:
    """The rest of an epoch.

    With a `Position`, the random states are restored at each of its moments. Without one (a checkpoint
    written by HF), they are restored as under HF: to those of the save, after the first window has been
    fetched.

    Args:
        loader: the loader of a whole epoch.
        seen: completed micro-steps of the epoch.
        position: where the run stood; None for a checkpoint of HF's own.
        restore: restores the random states of the process at the save.
        replays: whether the seen batches are drawn again.

    Attributes:
        loader: yields the remaining batches.
        order: random states when the epoch's order was drawn.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        seen: int,
        position: Position | None,
        restore: Callable[[], None],
        replays: bool = False,
    ) -> None:
        self._position, self._seen, self._put_back, self._replays = position, seen, restore, replays
        self._is_restored = False
        self._way = self._choose(loader)
        self.loader = self._shortened(loader) if self._way is Way.SKIP else loader
        self._generators = Generators(loader)
        self._loaded: LoadedState | None = None
        self._ending: Batches | None = None
        if position is not None and self._way is Way.STATE:
            self._loaded = LoadedState(self.loader, position.loader)
        self.order = None if position is None else position.order

    def _shortened(self, loader: Loader) -> Loader:
        # From a checkpoint written by HF: as under HF, which skips too few.
        at_once = 1 if self._position is None else draws_at_once(plain(loader))
        return less(loader, self._seen, at_once)

    def begin(self, batches: Batches) -> None:
        """Advance to the first unseen batch."""
        if self._loaded is not None:
            self._loaded.note()
        if self._way is Way.REPLAY:
            for _ in range(self._seen):
                next(batches, None)
        if self._position is None or not draws_here(self.loader):
            return
        if self._way is not Way.REPLAY and self._is_noted:
            self._prompt_ahead(batches)
        elif self._way is Way.SKIP:
            self._prompt({self._first: self._restore})
        else:
            self._restore()

    def after_window(self, batches: Batches | None = None, *, is_any: bool = True) -> None:
        """After the first window, restore the random states of the save, if this has not been done.

        Args:
            batches: where it is the last window of the pass; a loader may have to see the end.
            is_any: whether it has any batch that counts.
        """
        self._ending = batches
        if is_any and not self._is_restored:
            self._restore()

    def end(self) -> None:
        """Make later passes start at their first batch."""
        if self._loaded is None:
            return
        if self._ending is not None:
            next(self._ending, None)
        self._loaded.forget()
        self._loaded = self._ending = None

    def _choose(self, loader: Loader) -> Way:
        position = self._position
        if position is None:
            return Way.SKIP if _has_skip(loader) else Way.REPLAY
        if position.loader is not None and is_stateful(loader):
            return Way.STATE if tells_all(loader) else Way.REPLAY
        # The first request of an epoch draws two batches, and no state between them was noted.
        begins = looks_ahead(loader) and draws_here(loader) and self._seen == 1
        # The random states of workers are correct once the workers have drawn every batch.
        by_workers = self._replays and not draws_here(loader)
        return Way.REPLAY if begins or by_workers or not can_skip(loader) else Way.SKIP

    @property
    def _is_noted(self) -> bool:
        position = self._position
        return position is not None and position.ahead is not None and looks_ahead(self.loader)

    @property
    def _first(self) -> int:
        """Return the index of the first unseen batch among those that are drawn from the data."""
        return 0 if self._way is Way.STATE else self._seen * draws_at_once(plain(self.loader))

    def _prompt_ahead(self, batches: Batches) -> None:
        """Draw the prefetched batch from its recorded states, and later batches from those of the save."""
        ahead: Any = self._position and self._position.ahead

        def restore() -> None:
            self._restore()
            batches.ahead = draws(self._generators)

        after = self._first + draws_at_once(plain(self.loader))
        self._prompt({self._first: lambda: redraw(ahead, self._generators), after: restore})

    def _prompt(self, before: dict[int, Callable[[], None]]) -> None:
        loader = plain(self.loader)
        base = getattr(loader, "base_dataloader", loader)
        for skipping in (getattr(base, "batch_sampler", None), getattr(base, "sampler", None)):
            if isinstance(skipping, SkipBatchSampler):
                # Indices are drawn before batches are, and may be random themselves.
                skip, skipping.skip_batches = skipping.skip_batches, 0
                skipping.batch_sampler = Prompted(skipping.batch_sampler, before, skip)
                return
        last = max(before)

        def put_back(then: Callable[[], None] = before[last]) -> None:
            then()
            loader.base_dataloader = base

        loader.base_dataloader = Prompted(base, {**before, last: put_back})

    def _restore(self) -> None:
        self._is_restored = True
        if self._position is not None and draws_here(self.loader):
            # A sampler whose batches are made by workers has drawn before the save.
            self._generators.put_back(self._position.own or {})
        self._put_back()


def count_pass(loader: Loader, position: Position | None) -> None:
    """Tell a stateful loader about the pass that ended right before the checkpoint.

    Some loaders count their passes, to shuffle each differently, and some continue where the last pass ended.

    Args:
        loader: the loader.
        position: where the run stood.
    """
    if position is None or position.loader is None or not (is_stateful(loader) and tells_all(loader)):
        return
    loaded = LoadedState(loader, position.loader)
    batches, nothing = iter(loader), object()
    loaded.note()
    if next(batches, nothing) is nothing:
        loaded.forget()
    else:
        loader.load_state_dict(position.loader)


def _has_skip(loader: Loader) -> bool:
    """Whether accelerate can skip the first batches of this loader."""
    loader = plain(loader)
    if not isinstance(loader, DataLoader):
        return looks_ahead(loader)
    by_batches = loader.batch_sampler is not None or isinstance(loader.sampler, BatchSampler)
    return by_batches or isinstance(loader.dataset, IterableDataset)


def can_skip(loader: Loader) -> bool:
    """Whether skipping yields exactly the batches that follow, and draws no random number afterwards."""
    loader = plain(loader)
    if looks_ahead(loader):
        return _has_skip(loader)
    # accelerate replaces a subclass, which may iterate differently, by a plain loader.
    is_plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    return is_plain and _has_skip(loader) and not isinstance(loader.dataset, IterableDataset)


def draws_at_once(loader: Loader) -> int:
    """Return how many batches the first process draws for each batch that one process receives."""
    is_spread = isinstance(loader, DataLoaderDispatcher) and not loader.split_batches
    return loader.state.num_processes if is_spread else 1
