"""One process with four batches in a step, two with two, four with one: the same steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import jobs
from tests.warm import PYTHON

SCRIPT = str(Path(__file__).with_name("scripts") / "forms.py")
FORMS = (1, 2, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = jobs.once(
        tmp_path_factory,
        "forms",
        lambda folder: jobs.finished(jobs.run([PYTHON, "-W", "ignore", SCRIPT, str(folder)])),
    )
    return {
        processes: [
            json.loads((folder / f"{processes}-{rank}.json").read_text()) for rank in range(processes)
        ]
        for processes in FORMS
    }


@pytest.mark.parametrize("processes", FORMS)
def test_each_process_does_what_it_does_under_hf(
    found: dict[int, list[dict[str, Any]]], processes: int
) -> None:
    for rank in found[processes]:
        assert rank["ours"] == rank["theirs"]
        assert rank["ours"]["weights"] == found[processes][0]["ours"]["weights"]


@pytest.mark.parametrize("processes", FORMS)
def test_a_step_sees_the_same_samples(found: dict[int, list[dict[str, Any]]], processes: int) -> None:
    (alone,) = found[1]
    shares = [rank["ours"]["steps"] for rank in found[processes]]
    together = [sorted(sum(share, [])) for share in zip(*shares, strict=True)]  # noqa: RUF017
    assert together == [sorted(step) for step in alone["ours"]["steps"]]
    assert len(together) == 10
    assert sorted(sum(together[:5], [])) == list(range(60)), "an epoch sees every sample once"  # noqa: RUF017


@pytest.mark.parametrize("processes", FORMS[1:])
def test_and_learns_the_same(found: dict[int, list[dict[str, Any]]], processes: int) -> None:
    (alone,) = found[1]
    for name in ("losses", "gradients"):
        # The sums of a step are taken in another order; float32 carries seven digits.
        assert found[processes][0]["ours"][name] == pytest.approx(alone["ours"][name], rel=1e-5)
