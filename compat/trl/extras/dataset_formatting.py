"""Converts chats and instructions in a dataset to text with the tokenizer's chat template."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Literal

from datasets import Dataset, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedTokenizerBase

    from compat.trl.trainer.utils import ConstantLengthDataset

__all__ = [
    "FORMAT_MAPPING",
    "conversations_formatting_function",
    "get_formatting_func_from_dataset",
    "instructions_formatting_function",
    "render",
]

FORMAT_MAPPING: dict[str, Any] = {
    "chatml": [{name: Value(dtype="string", id=None) for name in ("content", "role")}],
    "instruction": {name: Value(dtype="string", id=None) for name in ("completion", "prompt")},
}
"""The features that identify the two kinds of datasets."""

_logger = logging.getLogger(__name__)

_SAY_SO = (
    "No chat template is defined for this tokenizer: the one that transformers 4.37 had for its class "
    "stands in. Set `tokenizer.chat_template` to have another one."
)


def conversations_formatting_function(
    tokenizer: PreTrainedTokenizerBase, messages_field: Literal["messages", "conversations"]
) -> Callable[[Any], Any]:
    """Make a formatting function for chats.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages_field: the column with the messages.

    Returns:
        A function that maps one row to a text, or a batch of rows to a list of texts.
    """

    def to_text(rows: Mapping[str, Any]) -> str | list[str]:
        chats = rows[messages_field]
        if isinstance(chats[0], list):
            return [render(tokenizer, chat) for chat in chats]
        return render(tokenizer, chats)

    return to_text


def instructions_formatting_function(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    """Make a formatting function for the columns `prompt` and `completion`.

    Args:
        tokenizer: a tokenizer with a chat template.

    Returns:
        A function that maps one row to a text, or a batch of rows to a list of texts.
    """

    def as_chat(prompt: str, completion: str) -> str:
        return render(
            tokenizer, [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        )

    def to_text(rows: Mapping[str, Any]) -> str | list[str]:
        if not isinstance(rows["prompt"], str):
            return [as_chat(*pair) for pair in zip(rows["prompt"], rows["completion"], strict=True)]
        return as_chat(rows["prompt"], rows["completion"])

    return to_text


def get_formatting_func_from_dataset(
    dataset: Dataset | ConstantLengthDataset, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Any], Any] | None:
    """Choose the formatting function by the columns of a dataset.

    Args:
        dataset: rows with `messages` or `conversations` of `content` and `role`, or with `prompt` and
            `completion` and nothing else.
        tokenizer: a tokenizer with a chat template.

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


def _is_chat(feature: object) -> bool:
    # Newer releases of `datasets` have a class for lists.
    inner = [feature.feature] if hasattr(feature, "feature") else feature
    return bool(inner == FORMAT_MAPPING["chatml"])


def render(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    """Convert a chat to text with the tokenizer's template.

    Until transformers 4.44, which removed them, a tokenizer without a template used that of its class.

    Args:
        tokenizer: the tokenizer.
        chat: messages with a `role` and a `content`.

    Raises:
        ValueError: there is no template, and its class had none; the roles of a Llama chat do not alternate.
    """
    kinds = [kind.__name__ for kind in type(tokenizer).__mro__]
    if getattr(tokenizer, "chat_template", None) is None:
        for prefixes, write in _WRITERS.items():
            if any(kind.startswith(prefixes) for kind in kinds):
                _warn_once()
                return write(tokenizer, chat)
    text: str = tokenizer.apply_chat_template(chat, tokenize=False)
    return text


@functools.cache
def _warn_once() -> None:
    _logger.warning(_SAY_SO)


def _write_ended(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    return "".join(f"{message['content']}{tokenizer.eos_token}" for message in chat)


def _write_llama(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    system, turns = (chat[0]["content"], chat[1:]) if chat[0]["role"] == "system" else (None, chat)
    if [turn["role"] for turn in turns] != [("user", "assistant")[place % 2] for place in range(len(turns))]:
        msg = (
            "Conversation roles must alternate user/assistant/user/assistant/...; they are "
            f"{[turn['role'] for turn in turns]}. Set `tokenizer.chat_template` to one that allows for that."
        )
        raise ValueError(msg)
    written = []
    for place, turn in enumerate(turns):
        content = turn["content"]
        if place == 0 and system is not None:
            content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{content}"
        if turn["role"] == "user":
            written.append(f"{tokenizer.bos_token}[INST] {content.strip()} [/INST]")
        else:
            written.append(f" {content.strip()} {tokenizer.eos_token}")
    return "".join(written)


def _write_chatml(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in chat)


def _ask_transformers(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(chat, tokenize=False)
    return text


_WRITERS: dict[tuple[str, ...], Callable[[Any, list[dict[str, str]]], str]] = {
    ("GPT2Tokenizer", "BloomTokenizer", "GPTNeoXTokenizer"): _write_ended,
    ("LlamaTokenizer",): _write_llama,
    # The templates of these classes were not suitable for training on chats.
    ("Blenderbot", "CodeLlama", "GPTSw3", "GPTSan", "GPTNeoXJapanese", "Whisper"): _ask_transformers,
    ("PreTrainedTokenizer",): _write_chatml,
}
"""Prefixes of class names → the function that writes a chat in their format; the first match counts."""
