"""Spark's TorchDistributor: HF's Trainer and ours in its processes, to the bit."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from tests.clusters.compare import assert_same, of_hf
from tests.distributed import jobs

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="`make test-clusters`"),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
]

SCRIPT = Path(__file__).with_name("on_spark.py")


def test_equal_to_hf(tmp_path: Path) -> None:
    folders = [tmp_path / library for library in ("compat", "transformers")]
    for folder in folders:
        folder.mkdir()
        script = SCRIPT if folder.name == "compat" else of_hf(SCRIPT, folder)
        jobs.finished(jobs.run([sys.executable, "-W", "ignore", str(script), str(folder)]))
    assert_same(*folders)
