"""Preparation of a model and its tokenizer for chats.

Mirrors `trl/models/utils.py` of TRL 0.7.11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class ChatMlSpecialTokens:
    """The special tokens of ChatML, and the template that they form.

    Attributes:
        bos_token: the token that begins a message.
        eos_token: the token that ends a message.
        pad_token: the padding token.
    """

    bos_token: str = "<|im_start|>"  # noqa: S105 (no password)
    eos_token: str = "<|im_end|>"  # noqa: S105
    pad_token: str = "<|im_end|>"  # noqa: S105

    @property
    def system(self) -> str:
        """The beginning of a system message."""
        return self._speaker("system")

    @property
    def user(self) -> str:
        """The beginning of a user message."""
        return self._speaker("user")

    @property
    def assistant(self) -> str:
        """The beginning of an assistant message."""
        return self._speaker("assistant")

    def _speaker(self, role: str) -> str:
        return f"{self.bos_token}{role}"

    @property
    def chat_template(self) -> str:
        """The Jinja template: each message, with its role on a separate line."""
        begin = f"'{self.bos_token}' + message['role'] + '\n'"
        end = f"'{self.eos_token}' + '\n'"
        return "".join(
            (
                "{% for message in messages %}",
                "{{" + begin + " + message['content'] + " + end + "}}",
                "{% endfor %}{% if add_generation_prompt %}",
                "{{ '" + self.assistant + "\n' }}",
                "{% endif %}",
            )
        )


FORMAT_MAPPING = {"chatml": ChatMlSpecialTokens}
"""Chat formats by name."""


def setup_chat_format(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    format: str | None = "chatml",  # noqa: A002 (TRL's name)
    resize_to_multiple_of: int | None = None,
) -> tuple[Any, Any]:
    """Add the special tokens and the template of a chat format to a tokenizer, and resize the model.

    Args:
        model: the model; its embeddings are resized to the tokenizer, and its generation ends with the new
            tokens.
        tokenizer: the tokenizer, changed in place.
        format: the name of the format, "chatml".
        resize_to_multiple_of: the number of embeddings is a multiple of it.

    Returns:
        The model and the tokenizer.

    Raises:
        ValueError: there is no such format.
    """
    if format not in FORMAT_MAPPING:
        msg = f"`format={format!r}`: Format {format} not available. Please use one of {[*FORMAT_MAPPING]}."
        raise ArgumentError(msg)
    tokens = FORMAT_MAPPING[format]()
    for name in ("bos_token", "eos_token", "pad_token"):
        setattr(tokenizer, name, getattr(tokens, name))
    tokenizer.add_special_tokens({"additional_special_tokens": [tokens.bos_token, tokens.eos_token]})
    tokenizer.chat_template = tokens.chat_template
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=resize_to_multiple_of)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(generation, name, getattr(tokenizer, name))
    return model, tokenizer
