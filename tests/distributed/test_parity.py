"""Two processes under torchrun: HF's Trainer and ours, compared to the bit, rank by rank."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.distributed import jobs
from tests.distributed.setups import BY_NAME, FOR_EVER, SLOW
from tests.distributed.setups import SETUPS as SHARING
from tests.parity.record import assert_equal

SETUPS = (
    "models/plain",
    "models/dropout",
    "models/gpt2",
    "models/batch-statistics",
    "accumulation/3",
    "accumulation/tokens-3",
    "accumulation/average-tokens-across-devices",
    "accumulation/no-average-across-devices",
    "accumulation/what-a-token-micro-step-sees",
    "data/stream",
    "data/stream-once-dispatched",
    "data/workers",
    "numerics/bf16",
    "evaluation/steps",
    "evaluation/predictions",
    "evaluation/uneven-lengths",
    "optimizers/adafactor",
    "generation/t5",
    "callbacks/all-at-epoch-end",
    "callbacks/stop-within-window",
    "subclasses/own-backward-with-accumulation",
    "subclasses/read-gradients-with-accumulation",
    "sessions/train-twice",
    *(setup.name for setup in SHARING),
    # transformers 4.53 cannot load an optimizer's state on several processes of a CPU, and its processes may
    # part ways over the best checkpoint, and wait for each other for ever.
    *(
        (
            "checkpoints/load-best",
            "checkpoints/load-worst-limit-1",
            "resume/mid-epoch",
            "resume/mid-epoch-with-accumulation",
        )
        if HAS_TRAINING_SEAMS
        else ()
    ),
)

WORKER = str(Path(__file__).with_name("worker.py"))
RANKS = (0, 1)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = [name for name in SETUPS if not BY_NAME[name].why_not()]

    def make(folder: Path) -> None:
        for library in ("transformers", "compat"):
            more = (*FOR_EVER, SLOW.name) if library == "compat" else ()
            jobs.finished(jobs.run(jobs.torchrun(WORKER, library, str(folder / library), *names, *more)))

    folder = jobs.once(tmp_path_factory, "parity", make)
    return {library: folder / library for library in ("transformers", "compat")}


def read(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return pickle.loads((folder / f"{name.replace('/', '-')}-{rank}.pickle").read_bytes())  # noqa: S301


@pytest.mark.parametrize("name", SETUPS)
def test_equal(records: dict[str, Path], name: str) -> None:
    if why_not := BY_NAME[name].why_not():
        pytest.skip(why_not)
    for rank in RANKS:
        ours, theirs = (read(records[library], name, rank) for library in ("compat", "transformers"))
        assert_equal(ours, theirs)


def test_a_module_in_a_lightning_trainer_of_ones_own_ends_as_hfs_trainer(records: dict[str, Path]) -> None:
    for rank in RANKS:
        found = read(records["compat"], "module", rank)
        for theirs, ours in found.values():
            assert ours == theirs


def test_every_rank_saves_its_generators(records: dict[str, Path]) -> None:
    saved = (records["compat"] / "best-slow-to-save").glob("checkpoint-*/rng_state_*.pth")
    assert {file.name for file in saved} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_every_rank_knows_and_loads_the_best_checkpoint(records: dict[str, Path]) -> None:
    first, second = (read(records["compat"], SLOW.name, rank)["trainers"][0] for rank in RANKS)
    assert first["state"]["best_model_checkpoint"] is not None
    assert second["state"]["best_model_checkpoint"] == first["state"]["best_model_checkpoint"]
    assert second["weights"] == first["weights"]


@pytest.mark.parametrize("name", FOR_EVER)
def test_processes_that_would_wait_for_each_other_for_ever_do_not_begin(
    records: dict[str, Path], name: str
) -> None:
    for rank in RANKS:
        kind, message = read(records["compat"], name, rank)["result"]
        assert kind == "ArgumentError"
        assert message.startswith(
            f"`accelerator_config={{'even_batches': False}}`: the processes have {FOR_EVER[name]} batches"
        )
