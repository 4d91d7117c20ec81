"""Ray Train's workers: HF's Trainer and ours to the bit, a worker that dies, and Ray's own datasets."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.clusters.compare import assert_same, of_hf
from tests.distributed import jobs

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="`make test-clusters`"),
    pytest.mark.timeout(1500),
]

SCRIPT = Path(__file__).with_name("on_ray.py")
SECONDS = 400


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run the script with some words, once; return its folder."""
    made: dict[tuple[str, ...], Path] = {}

    def run(library: str, *words: str) -> Path:
        key = (library, *words)
        if key not in made:
            folder = made[key] = tmp_path_factory.mktemp("_".join(key))
            script = SCRIPT if library == "compat" else of_hf(SCRIPT, folder)
            command = [sys.executable, "-W", "ignore", str(script), str(folder), *words]
            jobs.finished(jobs.run(command, seconds=SECONDS, RAY_AUTH_MODE="disabled"))
        return made[key]

    return run


def test_equal_to_hf(runs: Any) -> None:
    assert_same(runs("compat"), runs("transformers"))


def test_a_worker_that_dies_is_started_again_and_goes_on(runs: Any) -> None:
    folder = runs("compat", "dies")
    assert [torch.load(folder / f"{rank}.pt")["resumed"] for rank in (0, 1)] == [True, True]
    assert_same(folder, runs("compat"))


def test_ray_reports_each_checkpoint(runs: Any) -> None:
    reported = sorted((runs("compat") / "ray" / "run").glob("checkpoint_*/checkpoint/trainer_state.json"))
    assert len(reported) == 3


def test_datasets_of_rays(runs: Any) -> None:
    assert_same(runs("compat", "ray"), runs("transformers", "ray"))
