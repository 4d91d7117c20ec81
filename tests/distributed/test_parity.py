"""Two processes under torchrun: HF's Trainer and ours, compared to the bit, rank by rank."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.distributed import jobs
from tests.parity.record import assert_equal
from tests.parity.setups import BY_NAME

SETUPS = (
    "models/plain",
    "models/dropout",
    "models/half-frozen",
    "models/gpt2",
    "models/batch-statistics",
    "accumulation/3",
    "accumulation/tokens-3",
    "accumulation/average-tokens-across-devices",
    "accumulation/no-average-across-devices",
    "accumulation/synchronizing-each-batch",
    "accumulation/what-a-token-micro-step-sees",
    "data/stream",
    "data/stream-once-dispatched",
    "data/table",
    "data/workers",
    "data/group-by-length",
    "numerics/bf16",
    "evaluation/steps",
    "evaluation/predictions",
    "evaluation/uneven-lengths",
    "evaluation/several-sets",
    "checkpoints/load-best",
    # transformers 4.53 cannot load an optimizer's state on several processes of a CPU.
    *(("resume/mid-epoch", "resume/mid-epoch-with-accumulation") if HAS_TRAINING_SEAMS else ()),
)

WORKER = str(Path(__file__).with_name("worker.py"))
RANKS = (0, 1)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = [name for name in SETUPS if not BY_NAME[name].why_not()]
    folders = {}
    for library in ("transformers", "compat"):
        folder = folders[library] = tmp_path_factory.mktemp(library)
        jobs.finished(jobs.run(jobs.torchrun(WORKER, library, str(folder), *names)))
    return folders


def read(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return pickle.loads((folder / f"{name.replace('/', '-')}-{rank}.pickle").read_bytes())  # noqa: S301


@pytest.mark.parametrize("name", SETUPS)
def test_equal(records: dict[str, Path], name: str) -> None:
    if why_not := BY_NAME[name].why_not():
        pytest.skip(why_not)
    for rank in RANKS:
        ours, theirs = (read(records[library], name, rank) for library in ("compat", "transformers"))
        if rank:
            # The first process may still be writing when this one looks.
            ours.pop("files"), theirs.pop("files")
        assert_equal(ours, theirs)


def test_every_rank_saves_its_generators(records: dict[str, Path]) -> None:
    saved = (records["compat"] / "checkpoints-load-best").glob("checkpoint-*/rng_state_*.pth")
    assert {file.name for file in saved} == {"rng_state_0.pth", "rng_state_1.pth"}
