from __future__ import annotations

from typing import Any

import pytest
from accelerate import ParallelismConfig

from compat.arguments.sharding import (
    SIZES,
    context_problems,
    mesh_sizes,
    sequence_problems,
    sharding_problems,
)

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
        ({"parallelism_config": ParallelismConfig(tp_size=2, dp_shard_size=2)}, []),
        ({}, []),
    ],
)
def test_conflicts(values: dict[str, Any], texts: list[str]) -> None:
    told = list(sharding_problems(values))
    assert len(told) == len(texts)
    assert all(text in line for text, line in zip(texts, told, strict=True))


@pytest.mark.parametrize(
    ("values", "device_type", "texts"),
    [
        ({"fsdp": "full_shard"}, "cuda", []),
        ({"fsdp": "full_shard"}, "cpu", ["no kernels for it on a CPU. Give cp_size=1; with `deepspeed`"]),
        ({}, "cuda", ["it needs FSDP of version 2. Give `fsdp='full_shard'` with it, or cp_size=1"]),
        ({"fsdp": "full_shard", "fsdp_config": {"version": 1}}, "xpu", ["it needs FSDP of version 2"]),
        ({"fsdp": "hybrid_shard"}, "cuda", ["it needs FSDP of version 2"]),
        (
            {"fsdp": "full_shard", "fsdp_config": '{"fsdp_version": 1}'},
            "cuda",
            ["it needs FSDP of version 2"],
        ),
    ],
)
def test_shared_contexts(values: dict[str, Any], device_type: str, texts: list[str]) -> None:
    mesh = {"parallelism_config": ParallelismConfig(cp_size=2)}
    told = list(context_problems({**mesh, **values}, device_type))
    assert len(told) == len(texts)
    assert all(text in line for text, line in zip(texts, told, strict=True))
    assert not list(context_problems(values, device_type))


ZERO = {"deepspeed": {"zero_optimization": {"stage": 2}}}


@pytest.mark.parametrize(
    ("sizes", "values", "processes", "texts"),
    [
        ({}, {}, 4, []),
        ({"sp_size": 1}, {"label_smoothing_factor": 0.1}, 4, []),
        ({"sp_size": 2}, ZERO, 2, []),
        ({"sp_size": 2}, ZERO, None, []),
        ({"sp_size": 2, "dp_shard_size": 3}, ZERO, 6, []),
        ({"sp_size": 2}, {}, 2, ["with sp_size=2: sequence parallel is DeepSpeed's (Ulysses)"]),
        ({"sp_size": 2}, ZERO, 4, ["job has 4 processes. Give dp_replicate_size=2, or start 2 processes."]),
        ({"sp_size": 2}, ZERO, 3, ["3 processes are no multiple of it. Start a multiple of 2"]),
        ({"sp_size": 2, "tp_size": 2}, ZERO, None, ["sp_size=2 and tp_size=2: they do not go together"]),
        (
            {"sp_size": 2},
            {"label_smoothing_factor": 0.1},
            1,
            ["`deepspeed` is not given", "1 processes are no", "Give `label_smoothing_factor=0.0`."],
        ),
    ],
)
def test_shared_sequences(
    sizes: dict[str, int], values: dict[str, Any], processes: int | None, texts: list[str]
) -> None:
    told = list(sequence_problems({"parallelism_config": sizes, **values}, processes))
    assert len(told) == len(texts)
    assert all(text in line for text, line in zip(texts, told, strict=True))


def test_sizes_of_a_mesh() -> None:
    theirs = ParallelismConfig(tp_size=2, dp_shard_size=3)
    assert mesh_sizes(theirs) == {name: getattr(theirs, name) for name in SIZES}
    assert mesh_sizes({"tp_size": 2}) == {**mesh_sizes(None), "tp_size": 2}
    assert set(mesh_sizes(None).values()) == {1}
