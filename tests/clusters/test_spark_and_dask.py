"""Spark's TorchDistributor and Dask's workers: HF's Trainer and ours in their processes, to the bit."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from tests.clusters.compare import assert_same, of_hf
from tests.distributed import jobs

SCRIPT = Path(__file__).with_name("on_spark_and_dask.py")


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason="`make test-clusters`")


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(
            "spark",
            marks=[
                needs("pyspark"),
                pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
            ],
        ),
        pytest.param("dask", marks=needs("distributed")),
    ],
)
def test_equal_to_hf(engine: str, tmp_path: Path) -> None:
    folders = [tmp_path / library for library in ("compat", "transformers")]
    for folder in folders:
        folder.mkdir()
        script = SCRIPT if folder.name == "compat" else of_hf(SCRIPT, folder)
        jobs.finished(jobs.run([sys.executable, "-W", "ignore", str(script), engine, str(folder)]))
    assert_same(*folders)
