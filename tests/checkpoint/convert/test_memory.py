from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.checkpoint.convert import memory
from tests.distributed import jobs

if TYPE_CHECKING:
    from pathlib import Path

CONSTANT = 8 << 20
"""Bytes beside two tensors of the largest kind: structures, headers, what libraries keep."""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRAINING_SEAMS, reason="transformers has no part in it")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_no_more_than_two_tensors_at_a_time(tmp_path: Path) -> None:
    done = jobs.run([sys.executable, "-W", "ignore", memory.__file__, str(tmp_path)])
    jobs.finished(done)
    first, *lines = [line.split() for line in done.stdout.splitlines()]
    largest = int(first[1])
    growth = {(source, target): int(count) for source, target, count in lines}
    assert set(growth) == set(memory.PAIRS)
    whole = sum(path.stat().st_size for path in (tmp_path / "large" / "hf").iterdir())
    assert 2 * largest + CONSTANT < whole / 5
    assert {pair: count for pair, count in growth.items() if count > 2 * largest + CONSTANT} == {}
