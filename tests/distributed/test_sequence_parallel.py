"""Sequences that two processes share: HF's Trainer and ours to the bit, and one process that has them whole.

DeepSpeed is no part of the environments that the other tests run in: `make test-deepspeed` runs these.
"""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compat.upstream.features import SHARES_SEQUENCES
from tests.distributed import jobs, sequences
from tests.distributed.sequences import SETUPS
from tests.parity.bench import load_api

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed; `make test-deepspeed` has it"
    ),
    pytest.mark.skipif(not SHARES_SEQUENCES, reason="this release of transformers shares no sequences"),
]

ALIKE = ("zero-1", "zero-2", "zero-2-epochs", "zero-2-launched", "zero-3")
"""Set-ups that HF's Trainer can train to their end."""

LIKE_WHOLE = [name for name in SETUPS if SETUPS[name].like]
RESUMED = [name for name in SETUPS if SETUPS[name].resume]
WHOLE = sorted({SETUPS[name].like for name in LIKE_WHOLE})

# Sums over processes are taken in another order than sums over a batch.
CLOSE = 1e-5


def run(library: str, folder: Path, names: list[str]) -> None:
    command = jobs.torchrun("-m", "tests.distributed.sequences", library, str(folder), *names)
    jobs.finished(jobs.run(command, DS_ACCELERATOR="cpu"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    run("compat", folder, [name for name in SETUPS if name not in WHOLE])
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    run("transformers", folder, [*ALIKE])
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: sequences.train(name, load_api("compat"), folder) for name in WHOLE}


def read(runs: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((runs / f"{name}-{rank}.json").read_text())


def assert_same_weights(found: Path, expected: Path) -> None:
    one, other = torch.load(found), torch.load(expected)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ALIKE)
def test_equal(ours: Path, theirs: Path, name: str) -> None:
    for rank in (0, 1):
        assert read(ours, name, rank) == read(theirs, name, rank)
    assert read(ours, name)["kind"] == "DEEPSPEED"
    assert_same_weights(ours / f"{name}.pt", theirs / f"{name}.pt")


def test_later_epochs_lose_a_window_as_under_hf(ours: Path) -> None:
    found = read(ours, "zero-2-epochs")
    # Six windows, and five in each of the other two epochs.
    assert (found["step"], len(found["losses"])) == (16, 16)


@pytest.mark.parametrize("name", LIKE_WHOLE)
def test_trains_as_one_process(ours: Path, whole: dict[str, Any], name: str) -> None:
    found, expected = read(ours, name), whole[SETUPS[name].like]
    assert len(found["losses"]) == 8
    assert found["losses"] == pytest.approx(expected["losses"], rel=CLOSE)
    assert found["evaluation"] == pytest.approx(expected["evaluation"], rel=CLOSE)
    # Each process has the gradient of the whole loss: ZeRO 3 averages them, the other stages add them up.
    times = 1 if name.startswith("zero-3") else 2
    assert found["norms"] == pytest.approx([times * norm for norm in expected["norms"]], rel=CLOSE)
    if SETUPS[name].evaluates_first:
        assert found["first"] == pytest.approx(4.16, abs=0.01)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_the_uninterrupted_one(ours: Path, name: str) -> None:
    through = SETUPS[name].resume.partition("/")[0]
    for rank in (0, 1):
        assert read(ours, name, rank) == read(ours, through, rank)
    assert_same_weights(ours / f"{name}.pt", ours / f"{through}.pt")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("without-positions", "sp_size=2: the batches have no `position_ids`"),
        ("undivided", "sp_size=2: a batch has sequences of 15 tokens, which are not to be divided by 2"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(ours: Path, name: str, told: str) -> None:
    for rank in (0, 1):
        error = read(ours, name, rank)["error"]
        assert error.startswith("ArgumentError: ")
        assert told in error
