from __future__ import annotations

from typing import Any

import pytest
from accelerate import ParallelismConfig

from compat.arguments.sharding import SIZES, mesh_sizes, sharding_problems

BEST = {"save_only_model": True, "load_best_model_at_end": True}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (
            {"fsdp": True, "deepspeed": {"a": 1}},
            ["`fsdp=True` and `deepspeed={'a': 1}`: both shard the model"],
        ),
        ({"fsdp": True, **BEST}, ["`load_best_model_at_end=True` with `fsdp`"]),
        ({"deepspeed": {"a": 1}, **BEST}, ["`load_best_model_at_end=True` with `deepspeed`"]),
        (BEST, []),
        ({"parallelism_config": ParallelismConfig(cp_size=2)}, ["with cp_size=2: context parallel"]),
        ({"parallelism_config": {"sp_size": 4, "tp_size": 2}}, ["with sp_size=4: sequence parallel"]),
        ({"parallelism_config": ParallelismConfig(tp_size=2, dp_shard_size=2)}, []),
        ({}, []),
    ],
)
def test_conflicts(values: dict[str, Any], texts: list[str]) -> None:
    told = list(sharding_problems(values))
    assert len(told) == len(texts)
    assert all(text in line for text, line in zip(texts, told, strict=True))


def test_sizes_of_a_mesh() -> None:
    theirs = ParallelismConfig(tp_size=2, dp_shard_size=3)
    assert mesh_sizes(theirs) == {name: getattr(theirs, name) for name in SIZES}
    assert mesh_sizes({"tp_size": 2}) == {**mesh_sizes(None), "tp_size": 2}
    assert set(mesh_sizes(None).values()) == {1}
