from __future__ import annotations

import math

import pytest
import torch

from compat.trl.algorithms import dpo_tokens


def test_padded_on_the_right_at_any_place():
    padded = dpo_tokens.pad_to_length(torch.ones(1, 2, 2, dtype=torch.long), 3, -1, dim=1)
    assert padded.tolist() == [[[1, 1], [1, 1], [-1, -1]]]
    assert padded.dtype == torch.long
    assert dpo_tokens.pad_to_length(padded, 2, 0, dim=1) is padded


def test_sides_are_concatenated():
    batch = {
        "chosen_input_ids": torch.tensor([[1, 2, 3]]),
        "chosen_attention_mask": torch.tensor([[1, 1, 1]]),
        "chosen_labels": torch.tensor([[-100, 2, 3]]),
        "rejected_input_ids": torch.tensor([[1, 4]]),
        "rejected_attention_mask": torch.tensor([[1, 1]]),
        "rejected_labels": torch.tensor([[-100, 4]]),
        "chosen": ["text"],
    }
    found = dpo_tokens.concatenate_sides(batch, False, -100, 9, None)
    assert {name: values.tolist() for name, values in found.items()} == {
        "concatenated_input_ids": [[1, 2, 3], [1, 4, 9]],
        "concatenated_attention_mask": [[1, 1, 1], [1, 1, 0]],
        "concatenated_labels": [[-100, 2, 3], [-100, 4, -100]],
    }


def test_an_encoder_reads_each_prompt_twice():
    batch = {
        "chosen_labels": torch.tensor([[2, 3]]),
        "rejected_labels": torch.tensor([[4]]),
        "prompt_input_ids": torch.tensor([[5, 6]]),
        "prompt_attention_mask": torch.tensor([[1, 1]]),
    }
    found = dpo_tokens.concatenate_sides(batch, True, -100, 9, torch.device("cpu"))
    assert {name: values.tolist() for name, values in found.items()} == {
        "concatenated_labels": [[2, 3], [4, -100]],
        "concatenated_input_ids": [[5, 6], [5, 6]],
        "concatenated_attention_mask": [[1, 1], [1, 1]],
    }


# Probabilities of two tokens at three positions.
LOGITS = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]]).log()
LABELS = torch.tensor([[-100, 1, 0]])


def test_logits_predict_the_next_label():
    total = dpo_tokens.label_logprobs(LOGITS, LABELS, False, -100, False)
    assert total.tolist() == pytest.approx([math.log(0.5) + math.log(0.25)])
    average = dpo_tokens.label_logprobs(LOGITS, LABELS, True, -100, False)
    assert average.tolist() == pytest.approx([(math.log(0.5) + math.log(0.25)) / 2])


def test_logits_of_a_decoder_are_aligned():
    total = dpo_tokens.label_logprobs(LOGITS, LABELS, False, -100, True)
    assert total.tolist() == pytest.approx([math.log(0.75) + math.log(0.9)])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"same shape: they are \(1, 2\) and \(1, 3\)"):
        dpo_tokens.label_logprobs(
            torch.zeros(1, 2, 4), torch.zeros(1, 3, dtype=torch.long), False, -100, False
        )
