"""Two processes resume as one that was never stopped, and evaluate a LightningModule by its true batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import jobs

SCRIPT = str(Path(__file__).with_name("scripts") / "resumes.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = jobs.once(
        tmp_path_factory,
        "resumes",
        lambda folder: jobs.finished(jobs.run(jobs.torchrun(SCRIPT, str(folder)))),
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["unseeded", "own", "dispatched"])
@pytest.mark.parametrize("step", ["2", "6", "8", "13"])
def test_a_run_goes_on_where_it_was(found: list[dict[str, Any]], name: str, step: str) -> None:
    for rank in found:
        seen, weights, expected, undisturbed = rank[name][step]
        assert seen == expected
        assert weights == undisturbed
    epoch = [row for rank in found for batch in rank[name]["whole"][0][:6] for row in batch]
    assert sorted(epoch) == list(range(24)), "an epoch sees every row once"


def test_a_returned_loss_weighs_its_samples(found: list[dict[str, Any]]) -> None:
    # Sixteen rows in batches of three; the last one has two rows again, which weigh nothing. Its own loss is
    # the mean of all three.
    expected = (sum(range(15)) + (15 + 0 + 1) / 3) / 16
    for rank in found:
        assert rank["returns"]["losses"] == pytest.approx([expected] * 2)
        # What the module reduces itself weighs what Lightning has it weigh.
        assert rank["logs"]["losses"] == pytest.approx([(7 + (4 + 10 + 16 / 3) / 3) / 2] * 2)


def test_modes_are_kept_within_a_wrapper(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["returns"]["modes"] == [[True, False, True]]
        assert rank["returns"]["statistics"] == [0.0]
