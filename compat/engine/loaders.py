"""HF's dataloaders for Lightning's loops: in accumulation windows, or one batch at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import BatchSamplerShard
from lightning.pytorch.loops.fetchers import _DataFetcher
from transformers.trainer_utils import has_length
from typing_extensions import Self, override

from compat.engine.micro_batch import MicroBatch
from compat.engine.position import looks_ahead
from compat.engine.resumption import Resumed
from compat.engine.windows import ENDLESS, fetch_windows, window_at
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator

    from compat.engine.position import Batches
    from compat.engine.session import Session
    from compat.upstream.values import Loader


class WindowLoader:
    """The train dataloader, an accumulation window at a time.

    HF counts the items of a whole window before its first forward; Lightning's accumulation looks at one
    batch at a time. Therefore a window is fetched as a whole, and the session records the place of each
    micro-batch in its window; Lightning receives the batch as the collator returned it. Mirrors the two inner
    loops of `transformers.Trainer._inner_training_loop`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._given: int | None = None

    def __len__(self) -> int:
        # Lightning would skip a run whose data is empty; HF starts it, and logs that there are no samples.
        return ENDLESS if self._session.is_open else max(self._session.schedule.steps_in_epoch, 1)

    def __iter__(self) -> Iterator[Any]:
        """Fetch lazily: no sample and no random number is drawn before the first batch is requested."""
        session = self._session
        if session.nothing_left:
            return
        if session.sequences is not None or not (session.resumes_epoch and session.steps_trained):
            yield from self._windows(None)
            return
        resumed = Resumed(
            session.dataloader,
            seen=session.steps_trained,
            position=session.position,
            restore=session.restore_random_states,
            replays=session.replays_data,
        )
        try:
            yield from self._windows(resumed)
        finally:
            # When the next pass is requested: until then, checkpoints hold the position of this pass.
            resumed.end()

    def _seeded(self, loader: Loader) -> list[Any]:
        """Return the loaders whose epoch is set: a loader, and the longer one that it was made from."""
        whole, is_exact = self._session.dataloader, self._session.position is not None
        if loader is whole:
            return [whole]
        # accelerate wraps the sampler of a loader that it shortens: HF finds none there, or another one.
        return [*([whole] if is_exact else []), *([loader] if looks_ahead(loader) or not is_exact else [])]

    def _windows(self, resumed: Resumed | None) -> Iterator[Any]:
        session = self._session
        hf, schedule = session.hf, session.schedule
        size = hf.args.gradient_accumulation_steps
        loader = session.dataloader if resumed is None else resumed.loader
        step = session.steps_trained if session.resumes_epoch else 0
        counted_from = 0 if session.counts_skipped else step
        # The passes of shared sequences do not begin with the epochs.
        if not hf.seeds_epoch_before_callbacks and session.sequences is None:
            for each in self._seeded(loader):
                hf._seed_epoch(each, session.epoch)
        batches = session.begin_epoch(loader, None if resumed is None else resumed.order)
        if resumed is not None:
            resumed.begin(batches)
        end = schedule.steps_in_epoch
        if self._given is None:
            # A checkpoint is saved between windows: it holds no gradients.
            self._given = -(-step // size) * size
        # The micro-batches that earlier epochs left of a window.
        carried = (self._given - step) % size if hf.carries_windows else 0
        by_length = session.is_open or hf.carries_windows
        window_from = partial(
            window_at,
            size=size,
            length=ENDLESS if session.is_open else end,
            carried=carried,
            # Otherwise HF has counted them.
            number=None if by_length else session.windows_in_epoch,
        )
        leaves_rest = hf.carries_windows and end > size
        missed = 0 if session.sequences is None else session.sequences.missed
        for window in fetch_windows(batches, step + missed, window_from, self._fetch):
            fetched = window.batches
            hf.current_gradient_accumulation_steps = len(fetched)
            if session.is_open and not fetched:
                return
            if resumed is not None:
                is_any = bool(fetched or session.restores_after_empty_window)
                resumed.after_window(batches if window.is_last else None, is_any=is_any)
            for index, inputs in enumerate(fetched):
                session.coming = MicroBatch(
                    inputs=inputs,
                    num_items=window.num_items,
                    step=step,
                    opens=step % size == 0,
                    closes=index == len(fetched) - 1,
                    # A window cut short by data that ran out is carried over, unless the epoch was to end
                    # here.
                    syncs=(carried + step + 1) % size == 0
                    or (step + 1 - counted_from == end and not leaves_rest),
                )
                self._given += 1
                yield inputs
                step += 1

    def _fetch(self, batches: Batches, count: int) -> tuple[list[Any], Any]:
        hf, sequences = self._session.hf, self._session.sequences
        fetched, num_items = hf.get_batch_samples(batches, count, hf.args.device)
        if sequences is not None:
            sequences.missed += count - len(fetched)
        return fetched, num_items


class WindowFetcher(_DataFetcher):
    """Fetches from a `WindowLoader` alone, where Lightning's fetchers go through collections of loaders.

    No profiler is told of it.
    """

    @override
    def __iter__(self) -> Self:
        (loader,) = self.combined_loader.flattened
        self.iterator = iter(loader)
        self.reset()
        return self

    @override
    def __next__(self) -> tuple[Any, int, int]:
        if self.done:
            raise StopIteration
        try:
            batch = next(self.iterator)  # type: ignore[arg-type]
        except StopIteration:
            self.done = True
            raise
        self.fetched += 1
        self.done = self.fetched >= self.length  # type: ignore[operator]
        return batch, 0, 0


def require_equal_lengths(dataloader: Loader, accelerator: Accelerator) -> None:
    """Check in all processes that none of them would run out of batches before the others.

    Args:
        dataloader: this process's share of the data; a loader without a length is not checked.
        accelerator: HF's, which has the other processes' lengths gathered.

    Raises:
        ArgumentError: the lengths differ. Under HF, the processes with more batches deadlock.
    """
    if accelerator.num_processes == 1:
        return
    mine = _count_batches(dataloader) if has_length(dataloader) else -1
    lengths = accelerator.gather(torch.tensor([mine], device=accelerator.device)).tolist()
    if len(set(lengths)) > 1:
        msg = (
            f"`accelerator_config={{'even_batches': {accelerator.even_batches}}}`: the processes have "
            f"{lengths} batches, and training would deadlock. Set `even_batches` to True, set "
            "`dataloader_drop_last=True`, or give each process as many batches."
        )
        raise ArgumentError(msg)


def _count_batches(dataloader: Loader) -> int:
    """How many batches a dataloader yields; accelerate's counts one too many where a last split is empty."""
    count, shard = len(dataloader), getattr(dataloader, "batch_sampler", None)
    if isinstance(shard, BatchSamplerShard) and shard.split_batches:
        whole = shard.batch_sampler
        rest, share = len(whole.sampler) % whole.batch_size, whole.batch_size // shard.num_processes
        if not shard.even_batches and not shard.drop_last and 0 < rest <= share * shard.process_index:
            count = min(count, len(shard) - 1)
    return count


class EvaluationLoader:
    """A dataloader for Lightning's evaluation and prediction loops, iterated to its end.

    It does not report its length: a loop that stops by count would leave accelerate's loader registered as
    active, and would miss batches that a loader yields beyond the length it reports.
    """

    def __init__(self, dataloader: Loader) -> None:
        self._dataloader: Loader = dataloader

    def __len__(self) -> int:
        return ENDLESS

    @property
    def batches(self) -> int | float:
        """The number of batches that the dataloader reports."""
        return len(self._dataloader) if has_length(self._dataloader) else float("inf")

    def __iter__(self) -> Iterator[Any]:
        yield from self._dataloader

    def release(self) -> None:
        """Drop the reference to the dataloader, which Lightning's loops would otherwise keep."""
        self._dataloader = ()
