"""The rest of an epoch in which a run goes on."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from accelerate.data_loader import DataLoaderDispatcher, SkipBatchSampler
from torch.utils.data import DataLoader, IterableDataset

from compat.engine.limits import less, plain
from compat.engine.position import Prompted, draws, draws_here, is_stateful, looks_ahead, redraw

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.engine.position import Batches
    from compat.engine.session import Session


class Way(Enum):
    """How a loader gets to the first batch that has not been seen."""

    STATE = auto()
    """It loads a state of its own."""
    SKIP = auto()
    """It leaves out what lies before; data without indices it draws and throws away."""
    REPLAY = auto()
    """It draws all batches anew, and we throw them away."""


class Resumed:
    """The rest of an epoch.

    With a `Position`, random numbers are put back to what they were at each of its moments. Without one, the
    checkpoint being HF's own, they are as under HF: as at the save, once the first window has been fetched.

    Args:
        session: the run.

    Attributes:
        loader: what yields the rest.
        order: random states when the epoch's order was drawn.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._position = position = session.position
        self._seen = session.steps_trained
        self._is_restored = False
        self._way = self._choose(session.dataloader)
        self.loader = less(session.dataloader, self._seen) if self._way is Way.SKIP else session.dataloader
        if self._way is Way.STATE:
            self.loader.load_state_dict(position.loader)  # type: ignore[union-attr]
        self.order = None if position is None else position.order

    def begin(self, batches: Batches) -> None:
        """Get to the first batch that has not been seen."""
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

    def after_first_window(self) -> None:
        """Restore the random numbers of the save, where it has not been done."""
        if not self._is_restored:
            self._restore()

    def _choose(self, loader: Any) -> Way:
        position = self._position
        if position is None:
            return Way.SKIP
        if position.loader is not None and is_stateful(loader):
            return Way.STATE
        # The first request of an epoch draws two batches, and no state between them was noted.
        begins = looks_ahead(loader) and draws_here(loader) and self._seen == 1
        # Random numbers of workers are where they were once the workers have drawn all there was.
        by_workers = self._session.replays_data and not draws_here(loader)
        return Way.REPLAY if begins or by_workers or not _can_skip(loader) else Way.SKIP

    @property
    def _is_noted(self) -> bool:
        position = self._position
        return position is not None and position.ahead is not None and looks_ahead(self.loader)

    @property
    def _first(self) -> int:
        """Index of the first batch that counts, among those that are drawn from the data."""
        return 0 if self._way is Way.STATE else self._seen * _draws_at_once(plain(self.loader))

    def _prompt_ahead(self, batches: Batches) -> None:
        """Have the batch ahead drawn as it was then, and those after it from where the save was."""
        ahead: Any = self._position and self._position.ahead

        def restore() -> None:
            self._restore()
            batches.ahead = draws()

        after = self._first + _draws_at_once(plain(self.loader))
        self._prompt({self._first: lambda: redraw(ahead), after: restore})

    def _prompt(self, before: dict[int, Callable[[], None]]) -> None:
        loader = plain(self.loader)
        base = getattr(loader, "base_dataloader", loader)
        for skipping in (getattr(base, "batch_sampler", None), getattr(base, "sampler", None)):
            if isinstance(skipping, SkipBatchSampler):
                # Indices are drawn before batches are, and may be random themselves.
                skipping.batch_sampler = Prompted(skipping.batch_sampler, before)
                return
        last = max(before)

        def put_back(then: Callable[[], None] = before[last]) -> None:
            then()
            loader.base_dataloader = base

        loader.base_dataloader = Prompted(base, {**before, last: put_back})

    def _restore(self) -> None:
        self._is_restored = True
        self._session.hf._load_rng_state(self._session.resume_from_checkpoint)


def _can_skip(loader: Any) -> bool:
    """Whether HF has a way to leave out batches of this loader that draws no random number after them."""
    loader = plain(loader)
    return looks_ahead(loader) or (
        isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    )


def _draws_at_once(loader: Any) -> int:
    """How many batches the first process draws for one that each process gets."""
    is_spread = isinstance(loader, DataLoaderDispatcher) and not loader.split_batches
    return loader.state.num_processes if is_spread else 1
