"""The base class of trainers whose loop is written by the user. Mirrors `trl.trainer.base` of 0.7.11."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from huggingface_hub import PyTorchModelHubMixin, whoami

if TYPE_CHECKING:
    from pathlib import Path


class BaseTrainer(PyTorchModelHubMixin):  # type: ignore[misc]
    """The base class of a trainer that is stepped manually; a subclass defines the steps.

    `save_pretrained` and `push_to_hub` come from `huggingface_hub`, and call `_save_pretrained`.

    Args:
        config: the configuration of the trainer.
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

    def _save_pretrained(self, save_directory: str | Path) -> None:
        raise NotImplementedError(self._missing("_save_pretrained"))

    def _missing(self, method: str) -> str:
        return f"Not implemented: `{type(self).__name__}.{method}`. Define it in the subclass."


def write_model_card(path: str, template: str, model_name: str | None) -> None:
    """Write a model card, if the Hub knows the user.

    Args:
        path: the folder.
        template: a text with the fields `model_name` and `model_id`.
        model_name: the title of the card.
    """
    try:
        user = whoami()["name"]
    except Exception:  # noqa: BLE001 (for any reason, the user is not known)
        warnings.warn(
            "Cannot retrieve user information assuming you are running in offline mode.",
            UserWarning,
            stacklevel=3,
        )
        return
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "README.md"), "w", encoding="utf-8") as file:
        file.write(template.format(model_name=model_name, model_id=f"{user}/{path}"))
