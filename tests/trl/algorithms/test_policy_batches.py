from __future__ import annotations

import numpy as np
import torch

from compat.trl.algorithms import policy_batches as batches


def test_a_response_ends_with_its_first_end_token():
    assert batches.cut_at_end(torch.tensor([5, 2, 6, 2]), 2).tolist() == [5, 2]
    assert batches.cut_at_end(torch.tensor([5, 6]), 2).tolist() == [5, 6]


def test_padding_and_prompt_are_removed():
    row, attention = torch.tensor([0, 0, 7, 8, 5, 6]), torch.tensor([0, 0, 1, 1])
    assert batches.remove_left_padding(row, attention, keep_prompt=True).tolist() == [7, 8, 5, 6]
    assert batches.remove_left_padding(row, attention, keep_prompt=False).tolist() == [5, 6]


QUERIES, RESPONSES = [torch.ones(2), torch.ones(1)], [torch.ones(2), torch.ones(2)]


def test_positions_before_response_tokens_are_marked():
    # Left padding, and right padding.
    attention = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    masks = batches.response_mask(attention, QUERIES, RESPONSES)
    assert masks.tolist() == [[0, 1, 1], [0, 1, 1]]
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert batches.response_mask(right, QUERIES, RESPONSES).tolist() == [[0, 1, 1], [1, 1, 0]]


def test_masked_response_tokens_are_not_marked():
    attention = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    given = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    masks = batches.response_mask(attention, QUERIES, RESPONSES, given)
    assert masks.tolist() == [[0, 0, 1], [0, 1, 0]]


def test_the_first_token_of_a_decoder_is_not_marked():
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    masks = batches.response_mask(attention, QUERIES, RESPONSES, is_encoder_decoder=True)
    assert masks.tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
    given = [torch.tensor([1, 1, 0, 1, 1]), torch.tensor([1, 0, 1, 1, 1])]
    masks = batches.response_mask(attention, QUERIES, RESPONSES, given, is_encoder_decoder=True)
    assert masks.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]


def test_the_last_minibatch_may_be_smaller():
    chosen = [indices.tolist() for indices in batches.minibatches(np.array([3, 0, 4, 1, 2]), 2)]
    assert chosen == [[3, 0], [4, 1], [2]]
