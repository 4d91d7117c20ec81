"""Chats and instructions in a dataset, turned into text by the tokenizer's chat template."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from datasets import Dataset, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.trl.trainer.utils import ConstantLengthDataset

__all__ = [
    "FORMAT_MAPPING",
    "conversations_formatting_function",
    "get_formatting_func_from_dataset",
    "instructions_formatting_function",
]

FORMAT_MAPPING: dict[str, Any] = {
    "chatml": [{name: Value(dtype="string", id=None) for name in ("content", "role")}],
    "instruction": {name: Value(dtype="string", id=None) for name in ("completion", "prompt")},
}
"""The features by which the two kinds are known."""

_logger = logging.getLogger(__name__)


def conversations_formatting_function(
    tokenizer: Any, messages_field: Literal["messages", "conversations"]
) -> Callable[[Any], Any]:
    """Make a formatting function for chats.

    Args:
        tokenizer: has a chat template.
        messages_field: the column with the messages.

    Returns:
        A function from one row to a text, or from a batch of rows to a list of texts.
    """

    def to_text(rows: Any) -> str | list[str]:
        chats = rows[messages_field]
        if isinstance(chats[0], list):
            return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        text: str = tokenizer.apply_chat_template(chats, tokenize=False)
        return text

    return to_text


def instructions_formatting_function(tokenizer: Any) -> Callable[[Any], Any]:
    """Make a formatting function for the columns `prompt` and `completion`.

    Args:
        tokenizer: has a chat template.

    Returns:
        A function from one row to a text, or from a batch of rows to a list of texts.
    """

    def as_chat(prompt: str, completion: str) -> str:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        text: str = tokenizer.apply_chat_template(chat, tokenize=False)
        return text

    def to_text(rows: Any) -> str | list[str]:
        if isinstance(rows["prompt"], list):
            return [as_chat(*pair) for pair in zip(rows["prompt"], rows["completion"], strict=True)]
        return as_chat(rows["prompt"], rows["completion"])

    return to_text


def get_formatting_func_from_dataset(
    dataset: Dataset | ConstantLengthDataset, tokenizer: Any
) -> Callable[[Any], Any] | None:
    """Find the formatting function for what a dataset's columns look like.

    Args:
        dataset: rows with `messages` or `conversations` of `content` and `role`, or with `prompt` and
            `completion` and nothing else.
        tokenizer: has a chat template.

    Returns:
        The function; None for any other dataset.
    """
    if not isinstance(dataset, Dataset):
        return None
    for column in ("messages", "conversations"):
        if column in dataset.features and _is_chat(dataset.features[column]):
            _logger.info("Formatting dataset with chatml format")
            return conversations_formatting_function(tokenizer, column)
    if dataset.features == FORMAT_MAPPING["instruction"]:
        _logger.info("Formatting dataset with instruction format")
        return instructions_formatting_function(tokenizer)
    return None


def _is_chat(feature: Any) -> bool:
    # Newer releases of datasets have a class for lists.
    inner = [feature.feature] if hasattr(feature, "feature") else feature
    return bool(inner == FORMAT_MAPPING["chatml"])
