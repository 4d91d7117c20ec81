from __future__ import annotations

from types import SimpleNamespace

import datasets
import pytest

from compat.trl.extras import dataset_formatting as formatting
from tests.trl.setups import parts

CHAT = [
    {"role": "user", "content": " how? "},
    {"role": "assistant", "content": "so "},
    {"role": "user", "content": "and?"},
]
SYSTEM = {"role": "system", "content": "be short"}


def bare(name, **given):
    """A tokenizer of a class of this name, without a chat template."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": None}
    return type(name, (SimpleNamespace,), {})(**tokens, **given)


@pytest.mark.parametrize(
    ("name", "with_system", "without"),
    [
        ("GPT2TokenizerFast", "be short</s> how? </s>so </s>and?</s>", " how? </s>so </s>and?</s>"),
        ("GPTNeoXTokenizerFast", "be short</s> how? </s>so </s>and?</s>", " how? </s>so </s>and?</s>"),
        (
            "LlamaTokenizerFast",
            "<s>[INST] <<SYS>>\nbe short\n<</SYS>>\n\n how? [/INST] so </s><s>[INST] and? [/INST]",
            "<s>[INST] how? [/INST] so </s><s>[INST] and? [/INST]",
        ),
        (
            "PreTrainedTokenizerFast",
            "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\n how? <|im_end|>\n"
            "<|im_start|>assistant\nso <|im_end|>\n<|im_start|>user\nand?<|im_end|>\n",
            "<|im_start|>user\n how? <|im_end|>\n<|im_start|>assistant\nso <|im_end|>\n"
            "<|im_start|>user\nand?<|im_end|>\n",
        ),
    ],
)
def test_templates_of_4_37(name, with_system, without):
    # As `apply_chat_template` of transformers 4.37.2 has written them.
    assert formatting.render(bare(name), [SYSTEM, *CHAT]) == with_system
    assert formatting.render(bare(name), CHAT) == without


def test_a_llama_takes_turns():
    with pytest.raises(ValueError, match=r"must alternate user/assistant.*\['user', 'user'\].*chat_template"):
        formatting.render(bare("LlamaTokenizer"), [CHAT[0], CHAT[2]])


def test_what_had_no_template_of_use_is_left_to_transformers():
    asked = bare("CodeLlamaTokenizer", apply_chat_template=lambda chat, tokenize: f"asked {len(chat)}")
    assert formatting.render(asked, CHAT) == "asked 3"


def test_own_template_comes_first():
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    assert formatting.render(tokenizer, CHAT) == "[ how? ][so ][and?]"
    rows = datasets.Dataset.from_dict({"conversations": [CHAT[:2], CHAT[:2]]})
    function = formatting.get_formatting_func_from_dataset(rows, tokenizer)
    assert function(rows[0]) == "[ how? ][so ]"
    # a column of a whole dataset, which newer releases of datasets read lazily
    assert function(rows) == ["[ how? ][so ]"] * 2
    pairs = datasets.Dataset.from_dict({"prompt": ["how?"], "completion": ["so"]})
    function = formatting.get_formatting_func_from_dataset(pairs, tokenizer)
    assert function(pairs) == function(pairs[0:1]) == [function(pairs[0])] == ["[how?][so]"]
