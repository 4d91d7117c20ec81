"""ZeRO on two processes: HF's Trainer and ours to the bit, and the same models whole in each process.

DeepSpeed is no part of the environments that the other tests run in: `make test-deepspeed` runs these.
"""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from compat.checkpoint.convert import convert
from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.distributed import jobs
from tests.distributed.compare import (
    assert_same,
    assert_saved_is_live,
    assert_trains_alike,
    read,
    run,
    run_unlaunched,
    saved_names,
    weights,
)
from tests.distributed.sharded import EVALUATED_FIRST, GUESTS, SETUPS, ZERO, ZERO_BY_THREE
from tests.warm import PYTHON

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
    run("compat", folder, [*WHOLE, *ZERO, *EVALUATED_FIRST, *GUESTS], DS_ACCELERATOR="cpu")
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


ALONE = ("zero-2", "zero-2-resumed", "zero-3", "zero-3-resumed", "zero-3-loaded")
"""Run by one process. HF's Trainer needs a launcher, or MPI, for it."""


@pytest.fixture(scope="module")
def theirs_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs-alone")
    run("transformers", folder, [*ALONE], processes=1, DS_ACCELERATOR="cpu")
    return folder


@pytest.mark.parametrize("way", ["launched", "unlaunched", "kept on the CPU"])
def test_equal_in_one_process(tmp_path: Path, theirs_alone: Path, way: str) -> None:
    if way == "launched":
        run("compat", tmp_path, [*ALONE], processes=1, DS_ACCELERATOR="cpu")
    elif way == "unlaunched":
        run_unlaunched("compat", tmp_path, [*ALONE], DS_ACCELERATOR="cpu")
    else:
        # As `accelerate launch --cpu` says it; HF's Trainer takes no notice of DeepSpeed then.
        run_unlaunched("compat", tmp_path, [*ALONE], DS_ACCELERATOR="cpu", ACCELERATE_USE_CPU="true")
    for name in ALONE:
        assert_same(tmp_path, theirs_alone, name)
        assert read(tmp_path, name)["kind"] == "DEEPSPEED"


ARGUMENTS_OF_HF = """
import sys
import transformers
import compat
from tests.distributed import sharded

sharded.compile_nothing()
more = {"use_cpu": True, "max_steps": 2, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
args = transformers.TrainingArguments(sys.argv[1], **sharded.zero(2), **more)
trainer = compat.Trainer(sharded.make(sharded.gpt2), args, train_dataset=sharded.rows(24))
assert trainer.train().global_step == 2
print(trainer.accelerator.distributed_type.value)
"""


def test_arguments_of_hf_in_one_process(tmp_path: Path) -> None:
    command = [PYTHON, "-W", "ignore", "-c", ARGUMENTS_OF_HF, str(tmp_path)]
    done = jobs.run(command, DS_ACCELERATOR="cpu")
    jobs.finished(done)
    assert done.stdout.splitlines()[-1] == "DEEPSPEED"


@pytest.mark.parametrize("name", [name for name in GUESTS if SETUPS[name].like])
def test_a_lightning_module_trains_as_whole(runs: Path, name: str) -> None:
    assert_trains_alike(runs, name, "guest")
    assert [read(runs, name, rank)["kind"] for rank in (0, 1)] == ["DEEPSPEED"] * 2
    assert read(runs, name)["rates"][:7] == pytest.approx([1e-2] * 3 + [5e-3] * 3 + [2.5e-3])


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


FABRIC = """
import os
import torch
from compat.fabric.accelerator import FabricAccelerator
from tests.distributed import sharded

sharded.compile_nothing()
accelerator = FabricAccelerator(lightning={"strategy": "deepspeed_stage_2", "accelerator": "cpu"})
layer = torch.nn.Linear(4, 2)
layer, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
before = layer.module.weight.detach().clone()
accelerator.backward(layer(torch.ones(1, 4)).sum())
optimizer.step()
print((before - layer.module.weight).unique().tolist(), os.environ["MASTER_PORT"] != "29500")
"""


def test_a_loop_of_ones_own_in_one_process() -> None:
    done = jobs.run([PYTHON, "-W", "ignore", "-c", FABRIC], DS_ACCELERATOR="cpu")
    jobs.finished(done)
    steps, _, has_a_port_of_its_own = done.stdout.splitlines()[-1].rpartition(" ")
    assert json.loads(steps) == pytest.approx([0.1] * len(json.loads(steps)))
    assert has_a_port_of_its_own == "True"
