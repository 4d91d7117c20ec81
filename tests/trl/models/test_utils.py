from __future__ import annotations

import pytest

from compat.trl.models import setup_chat_format
from compat.trl.models.utils import ChatMlSpecialTokens
from tests.trl.setups import parts


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Format alpaca not available. Please use one of \['chatml'\]"):
        setup_chat_format(parts.causal(), parts.tokenizer(), format="alpaca")


def test_own_tokens_stand_in_the_template() -> None:
    tokens = ChatMlSpecialTokens(bos_token="<a>", eos_token="<b>")  # noqa: S106
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = tokens.chat_template
    said = [{"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert text == "<a>user\nhello<b>\n<a>assistant\n"
