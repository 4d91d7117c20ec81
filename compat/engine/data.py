"""HF's dataloaders, as Lightning's loops take them: in accumulation windows, or one batch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import trainer as hf_trainer

from compat.engine.session import MicroBatch

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
        return hf_trainer.skip_first_batches(session.dataloader, session.steps_trained), session.steps_trained


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
