from __future__ import annotations

import pickle
from typing import ClassVar

import pytest

from compat.trl.data import collators
from compat.trl.trainer import utils
from tests.trl.setups import parts


class TestCompletions:
    def test_equal_pad_and_eos_are_told_where_there_are_turns(self):
        tokenizer = parts.tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        with pytest.warns(
            UserWarning, match="pad_token_id and eos_token_id values of this tokenizer are identical"
        ):
            collators.DataCollatorForCompletionOnlyLM("a", "b", tokenizer=tokenizer)
        # One turn needs no end.
        collators.DataCollatorForCompletionOnlyLM("a", tokenizer=tokenizer)

    def test_a_sequence_without_the_template_is_told_and_left_out(self):
        tokenizer = parts.tokenizer()
        collator = collators.DataCollatorForCompletionOnlyLM("### Assistant:", tokenizer=tokenizer)
        with pytest.warns(UserWarning, match=r"Could not find response key `### A.*the sea is wide"):
            batch = collator([tokenizer("the sea is wide")])
        assert (batch["labels"] == -100).all()


class TestPairs:
    PAIR: ClassVar = {
        "input_ids_chosen": [1, 2],
        "attention_mask_chosen": [1, 1],
        "input_ids_rejected": [3],
        "attention_mask_rejected": [1],
    }

    def test_missing_parts_of_a_pair_are_named(self):
        half = {name: value for name, value in self.PAIR.items() if name != "input_ids_rejected"}
        with pytest.raises(ValueError, match=r"`input_ids_rejected`.*; input_ids_rejected is missing"):
            collators.RewardDataCollatorWithPadding(parts.tokenizer())([self.PAIR, half])

    def test_a_prompt_needs_a_padding_token(self):
        rows = [{"prompt_input_ids": [1], "prompt_attention_mask": [1]}]
        for is_encoder_decoder in (False, True):
            collator = collators.DPODataCollatorWithPadding(None, is_encoder_decoder=is_encoder_decoder)
            with pytest.raises(
                ValueError, match=r"not configured with a padding token\. Explicitly set `tokenizer"
            ):
                collator(rows)

    def test_a_part_of_nothing_is_refused(self):
        collator = collators.DPODataCollatorWithPadding(is_encoder_decoder=True)
        with pytest.raises(ValueError, match="Unexpected key in batch 'other_labels'"):
            collator([{"other_labels": [1]}])


NAMES = ["DPODataCollatorWithPadding", "DataCollatorForCompletionOnlyLM", "RewardDataCollatorWithPadding"]


@pytest.mark.parametrize("name", NAMES)
def test_pickles_by_the_name_of_trl_are_read(name):
    by_trl_name = f"ccompat.trl.trainer.utils\n{name}\n.".encode()
    assert pickle.loads(by_trl_name) is getattr(utils, name) is getattr(collators, name)  # noqa: S301


def test_prompts_are_padded_on_the_left():
    rows = [
        {"prompt_input_ids": [5, 6, 7], "chosen_labels": [1], "chosen_attention_mask": [1], "margin": "a"},
        {"prompt_input_ids": [8], "chosen_labels": [2, 3], "chosen_attention_mask": [1, 1], "margin": "b"},
    ]
    batch = collators.DPODataCollatorWithPadding(pad_token_id=9)(rows)
    assert batch["prompt_input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch["chosen_labels"].tolist() == [[1, -100], [2, 3]]
    assert batch["chosen_attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["margin"] == ["a", "b"]
    encoder = collators.DPODataCollatorWithPadding(pad_token_id=9, is_encoder_decoder=True)(rows)
    assert encoder["prompt_input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
