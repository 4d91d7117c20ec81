"""What an HFModule refuses under a strategy of Lightning's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from lightning.pytorch.strategies import ModelParallelStrategy

import compat
from compat.errors import ArgumentError
from compat.modules.strategies import check_strategy
from compat.upstream import started

if TYPE_CHECKING:
    from pathlib import Path


class Meshed(ModelParallelStrategy):
    def __init__(self, sharing: int) -> None:
        super().__init__()
        self._sizes = {"tensor_parallel": SimpleNamespace(size=lambda: sharing)}

    @property
    def device_mesh(self) -> Any:
        return self._sizes


def trainer(sharing: int) -> Any:
    return SimpleNamespace(strategy=Meshed(sharing), world_size=2, accumulate_grad_batches=1)


def test_processes_that_share_tensors_are_refused() -> None:
    with pytest.raises(ArgumentError, match="data_parallel_size=2, tensor_parallel_size=1") as refused:
        check_strategy(trainer(2), is_training=True)
    assert "`ModelParallelStrategy(tensor_parallel_size=2)`" in str(refused.value)
    check_strategy(trainer(1), is_training=True)


def test_a_process_that_lightning_starts_is_alone_until_its_group_is_there(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for name, value in {"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    args = compat.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    assert (args.world_size, args.process_index) == (1, 0)
    with pytest.raises(ArgumentError, match="Lightning has started a process"):
        started.require_group()
