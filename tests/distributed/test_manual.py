"""A module that optimizes manually in two processes, beside Lightning's own DDP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.distributed import jobs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_two_processes_train_to_the_bit_as_under_lightning(tmp_path: Path) -> None:
    for by in ("compat", "plain"):
        (tmp_path / by).mkdir()
        jobs.finished(jobs.run(jobs.torchrun("tests/distributed/scripts/manual.py", by, str(tmp_path / by))))
    for file in ("GAN-0.pt", "GAN-1.pt", "Accumulates-0.pt", "Accumulates-1.pt"):
        ours, theirs = (torch.load(tmp_path / by / file, weights_only=True) for by in ("compat", "plain"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # Buffers are each process's own.
    first, second = (torch.load(tmp_path / "compat" / f"GAN-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["discriminator.0.weight"], second["discriminator.0.weight"])
