"""Sentence Transformers in two processes that gather their negatives: HF's Trainer and ours, to the bit."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tests.distributed import jobs
from tests.parity.record import assert_equal
from tests.warm import PYTHON

SCRIPT = str(Path(__file__).with_name("scripts") / "embeddings.py")


def test_equal_on_each_process(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra [sentence-transformers]")
    jobs.finished(jobs.run([PYTHON, "-W", "ignore", SCRIPT, str(tmp_path)]))
    for rank in (0, 1):
        found = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())  # noqa: S301
        assert len(found) == 2
        for theirs, ours in found.values():
            assert theirs["wrapped"] == ["DistributedDataParallel"]
            assert_equal(ours, theirs)
