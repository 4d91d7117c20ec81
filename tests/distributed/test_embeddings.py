"""Sentence Transformers in two processes: HF's Trainer and ours, to the bit, and sharded by FSDP 2."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.distributed import jobs
from tests.parity.record import assert_equal
from tests.warm import PYTHON

SCRIPTS = Path(__file__).with_name("scripts")
SCRIPT = str(SCRIPTS / "embeddings.py")
SHARDED = str(SCRIPTS / "embeddings_sharded.py")


def test_equal_on_each_process(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra [sentence-transformers]")
    jobs.finished(jobs.run([PYTHON, "-W", "ignore", SCRIPT, str(tmp_path)]))
    for rank in (0, 1):
        found = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())  # noqa: S301
        assert len(found) == 2
        for theirs, ours in found.values():
            assert theirs["wrapped"] == ["DistributedDataParallel"]
            assert_equal(ours, theirs)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentence_transformers", reason="needs the extra [sentence-transformers]")
    return jobs.once(
        tmp_path_factory,
        "sharded-embeddings",
        lambda folder: jobs.finished(jobs.run(jobs.torchrun(SHARDED, str(folder)))),
    )


def read(runs: Path, name: str, rank: int = 0) -> Any:
    return json.loads((runs / f"{name}-{rank}.json").read_text())


@pytest.mark.parametrize("name", ["sharded", "in-shards"])
def test_sharded_as_replicated(sharded: Path, name: str) -> None:
    for rank in (0, 1):
        found, whole = read(sharded, name, rank), read(sharded, "replicated", rank)
        assert (found["kind"], whole["kind"]) == ("FSDPSentenceTransformer", "SentenceTransformer")
        # Sums are taken in another order.
        assert found["log"] == pytest.approx(whole["log"], abs=1e-5, rel=1e-5)
        assert found["best"] == whole["best"] != "checkpoint-6"


@pytest.mark.parametrize("name", ["sharded", "in-shards"])
def test_saved_is_live(sharded: Path, name: str) -> None:
    assert read(sharded, name)["saved_is_live"]
    described = [(sharded / each / "saved" / "modules.json").read_text() for each in (name, "replicated")]
    assert described[0] == described[1]


def test_best_is_loaded(sharded: Path) -> None:
    best = sharded / "sharded" / read(sharded, "sharded")["best"]
    kept, saved, last = (
        load_file(folder / "model.safetensors")
        for folder in (best, sharded / "sharded" / "saved", sharded / "sharded" / "checkpoint-6")
    )
    assert all(kept[key].equal(value) for key, value in saved.items())
    assert not all(last[key].equal(value) for key, value in saved.items())


@pytest.mark.parametrize("name", ["sharded", "in-shards"])
def test_resumed_as_uninterrupted(sharded: Path, name: str) -> None:
    for rank in (0, 1):
        found, whole = read(sharded, f"{name}-resumed", rank), read(sharded, name, rank)
        assert len(found["log"]) > 10
        assert found["log"] == whole["log"]
