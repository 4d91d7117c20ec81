from __future__ import annotations

import pytest

from compat.trl.data.dpo_rows import RowTokenizer


class Letters:
    """A token for each letter, and one for "ab"."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text, **options):
        ids = [99 if part == "*" else ord(part) for part in text.replace("ab", "*")]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def rows(**options):
    defaults = {
        "tokenizer": Letters(),
        "is_encoder_decoder": False,
        "max_length": 6,
        "max_prompt_length": 3,
        "max_target_length": None,
        "truncation_mode": "keep_end",
        "label_pad_token_id": -100,
    }
    return RowTokenizer(**{**defaults, **options})


def letters(tokens):
    return "".join({1: "<", 2: ">", 99: "*"}.get(token) or chr(token) for token in tokens)


@pytest.mark.parametrize(("mode", "prompt"), [("keep_end", "vwx"), ("keep_start", "<tu")])
def test_long_prompts_are_cut_before_answers(mode, prompt):
    row = rows(truncation_mode=mode)({"prompt": "tuvwx", "chosen": "yzyz", "rejected": "y"})
    assert letters(row["chosen_input_ids"]) == f"{prompt}yzy"
    assert letters(row["rejected_input_ids"]) == f"{prompt}y>"
    assert row["chosen_labels"] == [-100] * 3 + [ord(letter) for letter in "yzy"]
    assert row["chosen_attention_mask"] == [1] * 6


def test_rows_that_fit_stay_whole():
    row = rows(max_length=9)({"prompt": "tu", "chosen": "xyz", "rejected": "x"})
    assert letters(row["prompt_input_ids"]) == "<tu"
    assert letters(row["chosen_input_ids"]) == "<tuxyz>"
    assert row["rejected_labels"] == [-100, -100, -100, ord("x"), 2]


def test_a_prompt_longer_than_both_is_refused():
    class Merging(Letters):
        def __call__(self, text, **options):
            return super().__call__(text[:1] if len(text) > 3 else text)

    with pytest.raises(ValueError, match="the prompt has 3 and both have 1"):
        rows(tokenizer=Merging()).split("xyz", "a")
