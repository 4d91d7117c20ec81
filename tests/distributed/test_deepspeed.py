"""ZeRO on two processes: HF's Trainer and ours to the bit, and the same models whole in each process.

DeepSpeed is no part of the environments that the other tests run in: `make test-deepspeed` runs these.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from compat.checkpoint.convert import convert
from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.distributed.compare import (
    assert_saved_is_live,
    assert_trains_alike,
    read,
    run,
    saved_names,
    weights,
)
from tests.distributed.sharded import EVALUATED_FIRST, SETUPS, ZERO, ZERO_BY_THREE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed; `make test-deepspeed` has it"
)

WHOLE = ("gpt2", "gpt2-accumulating")
LIKE_WHOLE = [name for name in (*ZERO, *EVALUATED_FIRST) if SETUPS[name].like]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    run("compat", folder, [*WHOLE, *ZERO, *EVALUATED_FIRST], DS_ACCELERATOR="cpu")
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    run("transformers", folder, [*ZERO], DS_ACCELERATOR="cpu")
    return folder


@pytest.mark.parametrize("name", ZERO)
def test_equal(runs: Path, theirs: Path, name: str) -> None:
    for rank in (0, 1):
        assert read(runs, name, rank) == read(theirs, name, rank)
    ours, expected = weights(runs, name), weights(theirs, name)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)


@pytest.mark.parametrize("name", LIKE_WHOLE)
def test_trains_as_whole(runs: Path, name: str) -> None:
    assert_trains_alike(runs, name, SETUPS[name].like)


@pytest.mark.parametrize("name", [*ZERO, *EVALUATED_FIRST])
def test_the_third_stage_spreads_parameters(runs: Path, name: str) -> None:
    found = [read(runs, name, rank) for rank in (0, 1)]
    assert {entry["kind"] for entry in found} == {"DEEPSPEED"}
    held = sum(entry["held"] for entry in found) / read(runs, "gpt2")["held"]
    assert held == (1 if name.startswith("zero-3") else 2)


@pytest.mark.parametrize("name", [*ZERO, *EVALUATED_FIRST])
def test_what_is_saved_is_what_was_trained(runs: Path, name: str) -> None:
    assert_saved_is_live(runs, name)
    assert saved_names(runs, name) == saved_names(runs, "gpt2")


def test_its_own_schedule_is_followed(runs: Path) -> None:
    rates = read(runs, "zero-2-of-its-own")["rates"]
    assert rates != read(runs, "gpt2")["rates"]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] < rates[-2] < rates[-3]


@pytest.mark.parametrize("name", ["zero-2", "zero-3"])
@pytest.mark.parametrize("form", ["pretrained", "hf", "lightning"])
def test_converted_weights_are_deepspeeds_own(runs: Path, tmp_path: Path, name: str, form: str) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    source = runs / name / "checkpoint-10"
    convert(source, tmp_path / form, form)
    convert(tmp_path / form, tmp_path / "final", "pretrained")
    found, expected = (
        load_file(tmp_path / "final" / "model.safetensors"),
        get_fp32_state_dict_from_zero_checkpoint(source),
    )
    assert set(expected) - set(found) == {"lm_head.weight"}
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@pytest.mark.skipif(not HAS_TRAINING_SEAMS, reason="put together by the same parts of DeepSpeed")
def test_resumed_by_more_processes(runs: Path) -> None:
    run("compat", runs, [*ZERO_BY_THREE], processes=3, DS_ACCELERATOR="cpu")
    for name in ZERO_BY_THREE:
        assert_trains_alike(runs, name, SETUPS[name].like)
        assert len([read(runs, name, rank) for rank in range(3)]) == 3
        assert (runs / SETUPS[name].resume / "latest_universal").is_file()
