"""Pushes to the Hub, and their results."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from compat.arguments.training import fit_to_save
from compat.trainer.component import Component
from compat.upstream.features import PUSH_IS_AN_EVENT

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from compat.engine.host import TrainerHost

logger = logging.get_logger("transformers.trainer")


class HubUploads(Component):
    """Tracks HF's pushes; a failed push is logged and does not stop training.

    The Hub's client uploads in its own thread, one push after the other.
    """

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self._uploads: tuple[tuple[str, Future[Any]], ...] = ()
        self._failures_said: frozenset[str] = frozenset()
        self._failed_push: str | None = None
        self._to_do: tuple[Callable[[], None], ...] = ()

    def push(self, checkpoint_folder: str, push_from: Callable[[str], None]) -> None:
        """Push a checkpoint, unless another push is in progress.

        Args:
            checkpoint_folder: the folder of the checkpoint.
            push_from: HF's own `_push_from_checkpoint`.
        """
        hf = self.hf
        self._look_at_pushes()
        if not self._pushes_checkpoints():
            return
        self.announce()
        self._failed_push = None
        earlier = [] if hf.push_in_progress is None else list(hf.push_in_progress.jobs)
        try:
            # HF's code pickles the arguments again.
            with fit_to_save(hf.args):
                push_from(checkpoint_folder)
        except Exception as error:
            if any(
                frame.f_code.co_name == "call_event" for frame, _ in traceback.walk_tb(error.__traceback__)
            ):
                # A callback's own error, which always ends the run.
                raise
            self._note_failure(error)
            return
        jobs = [job for job in hf.push_in_progress.jobs if job not in earlier]  # type: ignore[union-attr]
        # HF uploads the model from `output_dir`, and the files of a checkpoint from its folder.
        folders = (hf.args.output_dir, checkpoint_folder)
        new = tuple((os.path.abspath(folder), job) for folder, job in zip(folders, jobs, strict=False))
        self._uploads = (*self._uploads, *new)

    def uploading(self) -> set[str]:
        """Return the folders that are being uploaded, or waiting to be: none of them may be removed."""
        return {folder for folder, job in self._uploads if not job.done()}

    def when_pushed(self, do: Callable[[], None]) -> None:
        """Call a function once no upload is in progress: removing a folder would make the Hub's client fail.

        Args:
            do: the function.
        """
        self._to_do += (do,)
        self._look_at_pushes()

    def report_last(self) -> None:
        """Log the failure of the last push, if it has failed."""
        hf = self.hf
        self._look_at_pushes()
        if self._failed_push is not None:
            logger.warning(
                f"The last push to `{hf.hub_model_id}` has failed: {self._failed_push}. What it was to "
                f"bring lies in `{hf.args.output_dir}`; `trainer.push_to_hub()` pushes the model again."
            )
            self._failed_push = None

    def finish_before_deletion(self) -> None:
        """Wait for a push, before HF removes all checkpoints but the best one (with a limit of one)."""
        hf = self.hf
        if hf.args.save_total_limit == 1 and self.uploading():
            hf._finish_current_push()

    def _look_at_pushes(self) -> None:
        """Log the results of finished pushes."""
        over = [job for _, job in self._uploads if job.done()]
        self._uploads = tuple((folder, job) for folder, job in self._uploads if job not in over)
        for job in over:
            if not job.cancelled() and (error := job.exception()) is not None:
                self._note_failure(error)
        if not self._uploads:
            to_do, self._to_do = self._to_do, ()
            for do in to_do:
                do()

    def _note_failure(self, error: BaseException) -> None:
        self._failed_push = f"{type(error).__name__}: {error}"
        kind = f"{type(error).__name__} {getattr(getattr(error, 'response', None), 'status_code', '')}"
        if kind in self._failures_said:
            return
        self._failures_said |= {kind}
        logger.warning(
            f"A push to `{self.hf.hub_model_id}` has failed: {self._failed_push}. Training goes on, its "
            "checkpoints lie on the disk, and the next save pushes again; errors of this kind are not said "
            "again. See to the network, to the token's rights and to the space that the repository has."
        )

    def _pushes_checkpoints(self) -> bool:
        """Whether HF pushes a checkpoint now: it skips one while another push is in progress."""
        hf = self.hf
        if not hf.is_world_process_zero() or hf.args.hub_strategy == HubStrategy.END:
            return False
        under_way = hf.push_in_progress
        return bool(hf.args.hub_always_push or under_way is None or under_way.is_done())

    def announce(self) -> None:
        """Fire the `on_push_begin` of 5.23 for the callbacks that define it."""
        hf = self.hf
        if PUSH_IS_AN_EVENT:
            return
        handler = hf.callback_handler
        everyone = handler.callbacks
        handler.callbacks = [callback for callback in everyone if hasattr(callback, "on_push_begin")]
        try:
            handler.call_event("on_push_begin", hf.args, hf.state, hf.control)
        finally:
            handler.callbacks = everyone
