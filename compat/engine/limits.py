"""Dataloaders without some of their batches."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from transformers import trainer as hf_trainer
from transformers.trainer_utils import has_length

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compat.upstream.values import Loader


class LimitedLoader:
    """The first batches of a dataloader, in every epoch.

    Args:
        dataloader: HF's loader; every attribute except the batches and their number is read from it.
        limit: a number of batches, or a fraction of them where it is a float.
    """

    def __init__(self, dataloader: Loader, limit: float) -> None:
        self._dataloader = dataloader
        self._limit = limit if isinstance(limit, int) else int(limit * len(dataloader))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataloader, name)

    def __len__(self) -> int:
        return min(self._limit, len(self._dataloader)) if has_length(self._dataloader) else self._limit

    def __iter__(self) -> Iterator[Any]:
        loader = self._dataloader
        yield from itertools.islice(loader, self._limit)
        # accelerate keeps a loader registered as the active one until it is exhausted.
        state = getattr(loader, "gradient_state", None)
        if state is not None and any(loader is used for used in state.dataloader_references):
            loader.end()

    @property
    def whole(self) -> Loader:
        """The loader that is limited."""
        return self._dataloader

    def less(self, count: int, at_once: int) -> LimitedLoader:
        """Return this loader without its first batches, for a resumed run."""
        return LimitedLoader(less(self._dataloader, count, at_once), self._limit - count)


def less(loader: Loader, count: int, at_once: int) -> Loader:
    """Return a loader without its first batches.

    Args:
        loader: the loader.
        count: batches that this process has already consumed.
        at_once: batches drawn for each batch that one process receives.
    """
    if isinstance(loader, LimitedLoader):
        return loader.less(count, at_once)
    return hf_trainer.skip_first_batches(loader, count * at_once)


def plain(loader: Loader) -> Loader:
    """Return the loader that a `LimitedLoader` wraps, or the loader itself."""
    return loader.whole if isinstance(loader, LimitedLoader) else loader


def limited(dataloader: Loader, limit: float | None) -> Loader:
    """Limit a dataloader to `limit` batches; return it unchanged if `limit` is None."""
    return dataloader if limit is None else LimitedLoader(dataloader, limit)
