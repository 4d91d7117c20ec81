"""The Hub: HF's own code, with the parameters of every release."""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import HubStrategy

from compat.arguments.training import fit_to_save
from compat.trainer.honoured import HonouringMixin
from compat.upstream.features import PUSH_IS_AN_EVENT, REPO_CAN_BE_PRIVATE


class HubMixin(HonouringMixin):
    """What is pushed, when and under which message is inherited."""

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
        if self.hub_model_id is None and private is not None:
            self.init_hf_repo(token=token, private=private)
        return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._pushes_checkpoints():
            self._announce_push()
        # It pickles the arguments once more.
        with fit_to_save(self.args):
            super()._push_from_checkpoint(checkpoint_folder)

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
