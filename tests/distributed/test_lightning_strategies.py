"""`HFModule` in a plain Lightning Trainer, by strategy and by who starts its processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed import jobs
from tests.warm import PYTHON

SCRIPT = str(Path(__file__).with_name("lightning_strategies.py"))

# Norms of shards are summed in another order.
CLOSE = 1e-5


def job(folder: Path, strategy: str, *, launched: bool) -> list[dict[str, torch.Tensor]]:
    place = folder / strategy
    place.mkdir()
    words = [SCRIPT, strategy, str(place)]
    jobs.finished(jobs.run(jobs.torchrun(*words) if launched else [PYTHON, "-W", "ignore", *words]))
    return torch.load(place / "weights.pt")


@pytest.mark.timeout(300)
def test_runs_are_equal_and_go_on(tmp_path: Path) -> None:
    straight, gone_on = job(tmp_path, "ddp", launched=False)
    (forked,) = job(tmp_path, "ddp_fork", launched=False)
    sharded, sharded_gone_on = job(tmp_path, "fsdp2", launched=True)
    for name, value in straight.items():
        # The model has dropout: each process goes on with its own random states.
        assert torch.equal(gone_on[name], value), name
        assert torch.equal(forked[name], value), name
        assert torch.equal(sharded_gone_on[name], sharded[name]), name
        torch.testing.assert_close(sharded[name], value, rtol=CLOSE, atol=CLOSE)
