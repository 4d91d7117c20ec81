"""The Hub: HF's own code, with the parameters of every release."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from compat.arguments.training import fit_to_save
from compat.trainer.honoured import HonouringMixin
from compat.upstream.features import PUSH_IS_AN_EVENT, REPO_CAN_BE_PRIVATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

logger = logging.get_logger("transformers.trainer")


class HubMixin(HonouringMixin):
    """What is pushed, when and under which message is inherited; one that fails is said, and stops nothing.

    The Hub's client uploads in a thread of its own, one push after the other.
    """

    _uploads: tuple[tuple[str, Future[Any]], ...] = ()
    _failures_said: frozenset[str] = frozenset()
    _failed_push: str | None = None
    _to_do: tuple[Callable[[], None], ...] = ()

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository that `args.hub_model_id` names, unless it is there.

        Mirrors `transformers.Trainer.init_hf_repo` of 5.23.

        Args:
            token: may write; `args.hub_token` where None.
            private: whether a new repository is private; `args.hub_private_repo` where None.
        """
        if REPO_CAN_BE_PRIVATE:
            super().init_hf_repo(token=token, private=private)
            return
        by_argument = self.args.hub_private_repo
        if private is not None:
            self.args.hub_private_repo = private
        try:
            super().init_hf_repo(token=token)
        finally:
            self.args.hub_private_repo = by_argument

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, write its card and upload both.

        Mirrors `transformers.Trainer.push_to_hub` of 5.23.

        Args:
            commit_message: the message of the commit.
            blocking: whether to wait for the upload.
            token: may write; `args.hub_token` where None.
            revision: the branch; `args.hub_revision` where None.
            private: whether a new repository is private; `args.hub_private_repo` where None.
            kwargs: options of `create_model_card`.

        Returns:
            The commit, or its future where not `blocking`.
        """
        self._announce_push()
        # It writes into the folder that is being uploaded.
        self._finish_current_push()
        if self.hub_model_id is None and private is not None:
            self.init_hf_repo(token=token, private=private)
        return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._look_at_pushes()
        if not self._pushes_checkpoints():
            return
        self._announce_push()
        self._failed_push = None
        earlier = [] if self.push_in_progress is None else list(self.push_in_progress.jobs)
        try:
            # It pickles the arguments once more.
            with fit_to_save(self.args):
                super()._push_from_checkpoint(checkpoint_folder)
        except Exception as error:
            if any(
                frame.f_code.co_name == "call_event" for frame, _ in traceback.walk_tb(error.__traceback__)
            ):
                # A callback's own, which ends a run wherever it is raised.
                raise
            self._note_failure(error)
            return
        jobs = [job for job in self.push_in_progress.jobs if job not in earlier]
        # HF uploads the model out of `output_dir`, and what belongs to a checkpoint out of that.
        folders = (self.args.output_dir, checkpoint_folder)
        new = tuple((os.path.abspath(folder), job) for folder, job in zip(folders, jobs, strict=False))
        self._uploads = (*self._uploads, *new)

    def _uploading(self) -> set[str]:
        """Folders that are on their way to the Hub, or waiting for it: none of them may be removed."""
        return {folder for folder, job in self._uploads if not job.done()}

    def _when_pushed(self, do: Callable[[], None]) -> None:
        """Do it once nothing is on its way: a folder that goes while the Hub's client lists is its error."""
        self._to_do += (do,)
        self._look_at_pushes()

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._look_at_pushes()
        if self._failed_push is not None:
            logger.warning(
                f"The last push to `{self.hub_model_id}` has failed: {self._failed_push}. What it was to "
                f"bring lies in `{self.args.output_dir}`; `trainer.push_to_hub()` pushes the model again."
            )
            self._failed_push = None

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.save_total_limit == 1 and self._uploading():
            # With this limit HF removes all checkpoints but the best one, ahead of waiting for the push.
            self._finish_current_push()
        return super()._finalize_training(*args, **kwargs)

    def _look_at_pushes(self) -> None:
        """Say what has become of those that are over."""
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
            f"A push to `{self.hub_model_id}` has failed: {self._failed_push}. Training goes on, its "
            "checkpoints lie on the disk, and the next save pushes again; errors of this kind are not said "
            "again. See to the network, to the token's rights and to the space that the repository has."
        )

    def _pushes_checkpoints(self) -> bool:
        """Whether HF pushes a checkpoint now: it leaves one out while another is on its way."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return False
        under_way = self.push_in_progress
        return bool(self.args.hub_always_push or under_way is None or under_way.is_done())

    def _announce_push(self) -> None:
        """Fire `on_push_begin`, of 5.23, for the callbacks that have it."""
        if PUSH_IS_AN_EVENT:
            return
        handler = self.callback_handler
        everyone = handler.callbacks
        handler.callbacks = [callback for callback in everyone if hasattr(callback, "on_push_begin")]
        try:
            handler.call_event("on_push_begin", self.args, self.state, self.control)
        finally:
            handler.callbacks = everyone
