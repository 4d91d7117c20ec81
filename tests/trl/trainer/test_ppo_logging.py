from __future__ import annotations

import pytest
import torch

from compat.trl.trainer import ppo_logging


def test_bfloat16_is_converted():
    stats = ppo_logging.without_bfloat16(
        {"a": torch.ones(1, dtype=torch.bfloat16), "b": 2, "c": torch.ones(1)}
    )
    assert (stats["a"].dtype, stats["b"], stats["c"].dtype) == (torch.float32, 2, torch.float32)


def test_missing_columns_are_refused():
    assert ppo_logging.gathered_columns({"query": ["a"]}, ["query"], is_distributed=False) == [["a"]]
    with pytest.raises(ValueError, match=r"\['response'\] are not present in the batch \['query'\]"):
        ppo_logging.gathered_columns({"query": ["a"]}, ["response"], is_distributed=False)
