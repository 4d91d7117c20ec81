"""PPOTrainer in two processes: replicated and sharded, against what TRL 0.7.11 gave in two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.distributed import jobs
from tests.trl import golden

if TYPE_CHECKING:
    from pathlib import Path

STRATEGIES = {"replicated": {}, "sharded": {"strategy": "fsdp"}}


@pytest.fixture(scope="module", params=STRATEGIES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def start(folder: Path) -> None:
        words = ("tests/trl/record.py", "--library", "compat.trl", "--folder", str(folder), AREA)
        flags = json.dumps(STRATEGIES[request.param])
        jobs.finished(jobs.run(jobs.torchrun(*words), PPO_LIGHTNING=flags))

    return jobs.once(tmp_path_factory, f"policies-{request.param}", start)


AREA = golden.OF_SEVERAL_PROCESSES


@pytest.mark.parametrize("rank", [0, 1])
def test_equal_to_what_was_recorded(run: Path, rank: int) -> None:
    recorded = golden.read(f"{AREA}-{rank}")
    found = golden.read(f"{AREA}-{rank}", run)
    assert found.keys() == recorded.keys()
    for key, value in recorded.items():
        golden.check(key, found[key], value)


def test_each_process_has_its_own_examples(run: Path) -> None:
    """Eight batches of three in all, of fourteen examples: two epochs, and nothing twice in one."""
    seen = [golden.read(f"{AREA}-{rank}", run)["batches.seen"] for rank in (0, 1)]
    for epoch in (slice(0, 2), slice(2, 4)):
        numbers = [number for batches in seen for batch in batches[epoch] for number in batch]
        assert len(numbers) == len(set(numbers)) == 12
