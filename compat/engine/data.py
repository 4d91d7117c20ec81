"""HF's dataloaders, as Lightning's loops take them: in accumulation windows, or one batch at a time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import BatchSamplerShard
from transformers import trainer as hf_trainer
from transformers.trainer_utils import has_length

from compat.engine.session import MicroBatch
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compat.engine.session import Session

ENDLESS = 2**53
"""The length of data that is taken to its end. Where data has a length, Lightning does not fetch ahead, which
would move the flags (last batch, samples left) that accelerate's loaders raise for the batch in progress."""


class WindowLoader:
    """The train dataloader, an accumulation window at a time.

    HF counts the items of a whole window before its first forward; Lightning's accumulation looks at one
    batch at a time. So windows are fetched whole, and each micro-batch carries its place in its window.
    Mirrors the two inner loops of `transformers.Trainer._inner_training_loop`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __len__(self) -> int:
        # Lightning would skip a run whose data has no length; HF begins it, and says that there are no
        # samples.
        return max(self._session.schedule.steps_in_epoch, 1)

    def __iter__(self) -> Iterator[MicroBatch]:
        """Fetch lazily: no sample and no random number is drawn before the first batch is asked for."""
        session = self._session
        hf, schedule = session.hf, session.schedule
        size = hf.args.gradient_accumulation_steps
        loader, step = self._epoch_loader()
        counted_from = 0 if hf.counts_skipped_batches else step
        if not hf.seeds_epoch_before_callbacks:
            hf._seed_epoch(loader, session.epoch)
        restores_rng = step > 0
        iterator = iter(loader)
        for window in range(step // size, schedule.num_update_steps_per_epoch):
            is_last = window == schedule.num_update_steps_per_epoch - 1
            count = (schedule.steps_in_epoch % size or size) if is_last else size
            batches, num_items = hf.get_batch_samples(iterator, count, hf.args.device)
            hf.current_gradient_accumulation_steps = len(batches)
            if restores_rng and (batches or hf.counts_skipped_batches):
                # Skipping batches has drawn random numbers; those of the checkpoint hold from here on.
                hf._load_rng_state(session.resume_from_checkpoint)
                restores_rng = False
            for index, inputs in enumerate(batches):
                yield MicroBatch(
                    inputs=inputs,
                    num_items=num_items,
                    step=step,
                    opens=step % size == 0,
                    closes=index == len(batches) - 1,
                    # A window cut short by data that ran out is carried over, unless the epoch was to end
                    # here.
                    syncs=(step + 1) % size == 0 or step + 1 - counted_from == schedule.steps_in_epoch,
                )
                step += 1

    def _epoch_loader(self) -> tuple[Any, int]:
        """The loader of this epoch, less what a resumed run has already seen, and its first micro-step."""
        session = self._session
        if not session.resumes_epoch or session.steps_trained == 0:
            return session.dataloader, 0
        loader, seen = session.dataloader, session.steps_trained
        if isinstance(loader, LimitedLoader):
            return loader.less(seen), seen
        return hf_trainer.skip_first_batches(loader, seen), seen


class LimitedLoader:
    """The first batches of a dataloader, in every epoch.

    Args:
        dataloader: HF's loader; all but its batches and their number is taken from it.
        limit: a number of batches, or a fraction of them where it is a float.
    """

    def __init__(self, dataloader: Any, limit: float) -> None:
        self._dataloader = dataloader
        self._limit = limit if isinstance(limit, int) else int(limit * len(dataloader))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataloader, name)

    def __len__(self) -> int:
        return min(self._limit, len(self._dataloader)) if has_length(self._dataloader) else self._limit

    def __iter__(self) -> Iterator[Any]:
        loader = self._dataloader
        yield from itertools.islice(loader, self._limit)
        # A loader of accelerate's that is not taken to its end goes on counting as the one in use.
        state = getattr(loader, "gradient_state", None)
        if state is not None and any(loader is used for used in state.dataloader_references):
            loader.end()

    def less(self, count: int) -> LimitedLoader:
        """This loader without its first batches, for a run that goes on."""
        return LimitedLoader(hf_trainer.skip_first_batches(self._dataloader, count), self._limit - count)


def limited(dataloader: Any, limit: float | None) -> Any:
    """A dataloader with at most `limit` batches; as it is where that is None."""
    return dataloader if limit is None else LimitedLoader(dataloader, limit)


def require_equal_lengths(dataloader: Any, accelerator: Any) -> None:
    """Have all processes find out together that one of them would run out of batches ahead of the others.

    Args:
        dataloader: this process's share of the data; one without a length is taken as it comes.
        accelerator: HF's, which has the other processes' lengths gathered.

    Raises:
        ArgumentError: the lengths differ. Under HF the longer processes wait for the others, for ever.
    """
    if accelerator.num_processes == 1:
        return
    mine = _count_batches(dataloader) if has_length(dataloader) else -1
    lengths = accelerator.gather(torch.tensor([mine], device=accelerator.device)).tolist()
    if len(set(lengths)) > 1:
        msg = (
            f"`accelerator_config={{'even_batches': {accelerator.even_batches}}}`: the processes have "
            f"{lengths} batches, and in each step all wait for all. Set `even_batches` to True, set "
            "`dataloader_drop_last=True`, or give each process as many batches."
        )
        raise ArgumentError(msg)


def _count_batches(dataloader: Any) -> int:
    """How many batches a dataloader yields; accelerate's counts one too many where a last split is empty."""
    count, shard = len(dataloader), getattr(dataloader, "batch_sampler", None)
    if isinstance(shard, BatchSamplerShard) and shard.split_batches:
        whole = shard.batch_sampler
        rest, share = len(whole.sampler) % whole.batch_size, whole.batch_size // shard.num_processes
        if not shard.even_batches and not shard.drop_last and 0 < rest <= share * shard.process_index:
            count = min(count, len(shard) - 1)
    return count


class EvaluationLoader:
    """A dataloader for Lightning's evaluation and prediction loops, taken batch by batch to its end.

    Its own length is not passed on: a loop that stops by count would leave accelerate's loader open, which
    then counts as the one in use, and would miss what a loader yields beyond the length it claims.
    """

    def __init__(self, dataloader: Any) -> None:
        self._dataloader: Any = dataloader

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Any]:
        yield from self._dataloader

    def release(self) -> None:
        """Let go of the dataloader, which Lightning's loops would otherwise keep."""
        self._dataloader = ()
