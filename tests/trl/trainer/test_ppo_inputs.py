from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import BatchEncoding

from compat.trl.trainer import ppo_inputs
from compat.trl.trainer.utils import RunningMoments

CPU = torch.device("cpu")
QUERIES, RESPONSES = [torch.tensor([1, 2]), torch.tensor([3])], [torch.tensor([4]), torch.tensor([5])]


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    columns = {
        name: torch.stack([torch.nn.functional.pad(row[name], (0, longest - len(row[name]))) for row in rows])
        for name in rows[0]
    }
    return BatchEncoding({**columns, "labels": columns["input_ids"]})


def test_queries_and_responses_are_one_sequence_of_a_decoder():
    batch = ppo_inputs.collate(padded, CPU, QUERIES, RESPONSES, is_encoder_decoder=False)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 4], [3, 5, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
    }


def test_an_encoder_reads_queries():
    batch = ppo_inputs.collate(padded, CPU, QUERIES, RESPONSES, is_encoder_decoder=True)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2], [3, 0]],
        "attention_mask": [[1, 1], [1, 0]],
        "decoder_input_ids": [[4], [5]],
        "decoder_attention_mask": [[1], [1]],
    }


def test_inputs_are_padded_across_processes():
    padding = []
    accelerator = SimpleNamespace(
        pad_across_processes=lambda tensor, **options: padding.append(options["pad_index"]) or tensor + 1
    )
    inputs = {"input_ids": torch.tensor([1]), "attention_mask": torch.tensor([1]), "other": torch.tensor([1])}
    tokenizer = SimpleNamespace(pad_token_id=7, padding_side="left")
    found = ppo_inputs.pad_across_processes(inputs, accelerator, tokenizer)
    assert {name: values.item() for name, values in found.items()} == {
        "input_ids": 2,
        "attention_mask": 2,
        "other": 1,
    }
    assert padding == [7, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 5.0]),
        ({"score_clip": 2.0}, [1.0, 2.0]),
        ({"use_score_scaling": True}, [1 / 8**0.5, 5 / 8**0.5]),
        ({"use_score_scaling": True, "use_score_norm": True}, [-2 / 8**0.5, 2 / 8**0.5]),
    ],
)
def test_scores_are_shaped(options, expected):
    defaults = {"use_score_scaling": False, "use_score_norm": False, "score_clip": None}
    running = RunningMoments(SimpleNamespace(use_distributed=False))
    config = SimpleNamespace(**{**defaults, **options})
    shaped = ppo_inputs.shape_scores(torch.tensor([1.0, 5.0]), config, running)
    assert shaped.tolist() == pytest.approx(expected)
