from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from compat.trl.trainer import dpo_setup


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (2, {"stage": 0}),
        (
            3,
            {
                "stage": 3,
                "reduce_bucket_size": 64,
                "stage3_param_persistence_threshold": 80,
                "stage3_prefetch_bucket_size": 57,
            },
        ),
    ],
)
def test_a_frozen_engine_has_no_optimizer(monkeypatch, stage, expected):
    made = {}

    def initialize(model, config):
        made.update(config)
        return model, None

    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(initialize=initialize))
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(hidden_size=8)
    given = {"optimizer": {}, "scheduler": {}, "zero_optimization": {"stage": stage, "offload_optimizer": {}}}
    assert not dpo_setup.frozen_engine(model, given).training
    assert made == {"zero_optimization": expected}
    assert given["zero_optimization"]["stage"] == stage
