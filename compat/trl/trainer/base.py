"""What trainers whose loop is their user's have in common. Mirrors `trl.trainer.base` of 0.7.11."""

from __future__ import annotations

from typing import Any

from huggingface_hub import PyTorchModelHubMixin


class BaseTrainer(PyTorchModelHubMixin):  # type: ignore[misc]
    """The start of a trainer that is stepped by hand; a subclass says what its steps are.

    `save_pretrained` and `push_to_hub` come from `huggingface_hub`, and call `_save_pretrained`.

    Args:
        config: of the trainer.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    def step(self, *args: Any) -> Any:
        """Train on one batch."""
        raise NotImplementedError(self._missing("step"))

    def loss(self, *args: Any) -> Any:
        """Compute the loss of one batch."""
        raise NotImplementedError(self._missing("loss"))

    def compute_rewards(self, *args: Any) -> Any:
        """Compute the rewards of one batch."""
        raise NotImplementedError(self._missing("compute_rewards"))

    def _save_pretrained(self, save_directory: Any) -> None:
        raise NotImplementedError(self._missing("_save_pretrained"))

    def _missing(self, method: str) -> str:
        return f"Not implemented: `{type(self).__name__}.{method}`. Define it in the subclass."
