"""A model and its tokenizer made ready for chats.

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
    """The special tokens of ChatML, and what follows from them.

    Attributes:
        bos_token: begins a message.
        eos_token: ends it.
        pad_token: fills up.
    """

    bos_token: str = "<|im_start|>"  # noqa: S105 (no password)
    eos_token: str = "<|im_end|>"  # noqa: S105
    pad_token: str = "<|im_end|>"  # noqa: S105

    @property
    def system(self) -> str:
        """What a message of the system begins with."""
        return self._speaker("system")

    @property
    def user(self) -> str:
        """What a message of the user begins with."""
        return self._speaker("user")

    @property
    def assistant(self) -> str:
        """What a message of the assistant begins with."""
        return self._speaker("assistant")

    def _speaker(self, role: str) -> str:
        return f"{self.bos_token}{role}"

    @property
    def chat_template(self) -> str:
        """The template in Jinja: each message with its role on a line of its own."""
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
    """Gives a tokenizer the special tokens and the template of a chat format, and the model room for them.

    Args:
        model: its embeddings are resized to the tokenizer, and its generation ends with the new tokens.
        tokenizer: changed in place.
        format: name of the format, "chatml".
        resize_to_multiple_of: number of embeddings is a multiple of it.

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
