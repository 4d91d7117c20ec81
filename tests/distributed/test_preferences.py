"""TRL's trainers that generate while they train, in two processes: HF's and ours, replicated and sharded."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.distributed import jobs
from tests.parity.parts.preferences import Models
from tests.parity.plain import plain
from tests.parity.record import assert_equal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="its trainers are what is run; the extra `trl` brings it"
)

REPLICATED = ("groups", "online")
# TRL 0.19 shards a reference model by version 1 of FSDP alone, which takes no CPU.
SHARDED = ("groups", "online") if HAS_TRAINING_SEAMS else ("online",)


ZERO = ("groups-zero", "online-zero") if HAS_TRAINING_SEAMS else ("groups-zero",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ours = [*REPLICATED, *(f"{name}-sharded" for name in SHARDED)]
    return jobs.once(tmp_path_factory, "preferences", lambda folder: _run(folder, ours, REPLICATED))


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed", reason="needs DeepSpeed; `make test-deepspeed` has it")
    folder = tmp_path_factory.mktemp("zeros")
    _run(folder, ZERO, ZERO, DS_ACCELERATOR="cpu")
    return folder


def _run(folder: Path, ours: Sequence[str], theirs: Sequence[str], **variables: str) -> None:
    models = Models(folder / "models")
    for head, seed in (("causal", 0), ("causal", 6), ("sequence", 0)):
        models(head, seed)
    for library, names in (("compat", ours), ("transformers", theirs)):
        (folder / library).mkdir()
        command = jobs.torchrun("-m", "tests.distributed.scripts.preferences", library, str(folder / library))
        jobs.finished(jobs.run([*command, *names], TRL_EXPERIMENTAL_SILENCE="1", **variables))


def read(runs: Path, library: str, name: str, rank: int) -> Any:
    return torch.load(runs / library / f"{name}-{rank}.pt")


@pytest.mark.parametrize("name", REPLICATED)
def test_equal(runs: Path, name: str) -> None:
    for rank in (0, 1):
        assert_equal(plain(read(runs, "compat", name, rank)), plain(read(runs, "transformers", name, rank)))
    assert len(read(runs, "compat", name, 0)["losses"]) > 2


@pytest.mark.parametrize("name", ZERO)
def test_equal_under_zero(zeros: Path, name: str) -> None:
    for rank in (0, 1):
        found, expected = (read(zeros, library, name, rank) for library in ("compat", "transformers"))
        assert (found["kind"], expected["kind"]) == ("DEEPSPEED", "DEEPSPEED")
        assert_equal(plain(found), plain(expected))
    assert read(zeros, "compat", name, 0)["weights"]


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_as_replicated(runs: Path, name: str) -> None:
    for rank in (0, 1):
        found, expected = (read(runs, "compat", one, rank) for one in (f"{name}-sharded", name))
        assert (found["kind"], expected["kind"]) == ("FSDP", "MULTI_CPU")
        # Sums are taken in another order.
        for what in ("weights", "reference"):
            assert found[what].keys() == expected[what].keys()
            for key, value in expected[what].items():
                torch.testing.assert_close(found[what][key], value, atol=1e-5, rtol=1e-5)
