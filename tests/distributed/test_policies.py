"""TRL 0.7's trainers in two processes, against what TRL 0.7.11 gave; PPOTrainer under each strategy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.distributed import jobs
from tests.trl import golden

if TYPE_CHECKING:
    from pathlib import Path

AREA = golden.OF_SEVERAL_PROCESSES
OF_PPO = ("plain", "accumulated", "scaled", "stopped")
ZERO = ("deepspeed_stage_2", "deepspeed_stage_3")


def start(folder: Path, strategy: str | None = None, **variables: str) -> None:
    words = ["tests/trl/record.py", AREA, "--library", "compat.trl", "--folder", str(folder)]
    if strategy is not None:
        words += ["--only", *OF_PPO]
        variables["PPO_LIGHTNING"] = json.dumps({"strategy": strategy})
    jobs.finished(jobs.run(jobs.torchrun(*words), **variables))


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.once(tmp_path_factory, "policies", start)


def check(folder: Path, rank: int, setups: tuple[str, ...] = ()) -> None:
    recorded, found = golden.read(f"{AREA}-{rank}"), golden.read(f"{AREA}-{rank}", folder)
    wanted = {k: v for k, v in recorded.items() if not setups or k.partition(".")[0] in setups}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        golden.check(key, found[key], value)


@pytest.mark.parametrize("rank", [0, 1])
def test_equal_to_what_was_recorded(replicated: Path, rank: int) -> None:
    check(replicated, rank)


def test_each_process_has_its_own_examples(replicated: Path) -> None:
    """Four batches of three each, of fourteen examples: two epochs, and nothing twice in one."""
    seen = [golden.read(f"{AREA}-{rank}", replicated)["batches.seen"] for rank in (0, 1)]
    for epoch in (slice(0, 2), slice(2, 4)):
        numbers = [number for batches in seen for batch in batches[epoch] for number in batch]
        assert len(numbers) == len(set(numbers)) == 12


def test_sharded_policies_are_those_that_were_recorded(tmp_path: Path) -> None:
    start(tmp_path, "fsdp")
    for rank in (0, 1):
        check(tmp_path, rank, OF_PPO)


@pytest.mark.parametrize("strategy", ZERO)
def test_policies_under_zero(strategy: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs DeepSpeed; `make test-deepspeed` has it")
    start(tmp_path, strategy, DS_ACCELERATOR="cpu")
    for rank in (0, 1):
        check(tmp_path, rank, OF_PPO)
