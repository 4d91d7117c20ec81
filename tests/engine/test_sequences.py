from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.utils.data import DataLoader

from compat.engine.sequences import SharedSequences, _slice_of
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 2


class Adapter:
    """DeepSpeed's adapter with a group in which each process has the same batches."""

    sp_world_size, sp_rank, sp_group = SIZE, 0, None

    def __init__(self, loader: Any) -> None:
        self.dl = loader
        self.iter = iter(loader)
        self.micro_batches: deque[Any] = deque()

    def __next__(self) -> Any:
        if not self.micro_batches:
            try:
                batch = next(self.iter)
            except StopIteration:
                self.iter = iter(self.dl)
                raise
            self.micro_batches.extend([batch] * SIZE)
        return self.micro_batches.popleft()


def seed(loader: Any, epoch: int) -> None:
    loader.set_epoch(epoch)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(dist, "get_backend", lambda group: "nccl")

    def made(*, seedable: bool) -> SharedSequences:
        torch.manual_seed(5)
        rows = [{"input_ids": torch.tensor([row]), "position_ids": torch.tensor([0])} for row in range(10)]
        loader = DataLoader(rows, batch_size=2, shuffle=True)
        from accelerate.utils import DataLoaderConfiguration

        config = DataLoaderConfiguration(use_seedable_sampler=seedable)
        return SharedSequences(Adapter(Accelerator(cpu=True, dataloader_config=config).prepare(loader)), seed)

    return made


def drawn(sequences: SharedSequences, count: int) -> Iterator[Any]:
    """Tokens of each request; None where a pass was over."""
    for _ in range(count):
        batch = next(sequences, None)
        torch.rand(3)  # as a model draws
        yield batch and batch["input_ids"].flatten().tolist()


@pytest.mark.parametrize("seedable", [False, True])
@pytest.mark.parametrize("stop", [1, 2, 3, 9, 10, 11, 12, 15, 21, 22, 25])
def test_the_rest_of_the_data_is_the_same(make: Any, stop: int, seedable: bool) -> None:
    through = make(seedable=seedable)
    list(drawn(through, stop))
    place, states = through.place(), torch.get_rng_state()
    expected = list(drawn(through, 24))
    assert expected.count(None) >= 2
    resumed = make(seedable=seedable)
    torch.rand(7)
    resumed.go_to(place)
    torch.set_rng_state(states)
    assert resumed.place() | {"order": 0} == place | {"order": 0}
    assert list(drawn(resumed, 24)) == expected


def test_passes_are_shuffled_anew(make: Any) -> None:
    rows = [tokens for tokens in drawn(make(seedable=True), 22) if tokens is not None]
    passes = [list(itertools.chain(*rows[start : start + 10 : SIZE])) for start in (0, 10)]
    assert [sorted(each) for each in passes] == [list(range(10))] * 2
    assert passes[0] != passes[1]


def test_a_slice_of_a_batch() -> None:
    tokens = torch.arange(8).view(2, 4)
    found = _slice_of({"input_ids": tokens, "labels": tokens, "name": "a"}, rank=1, size=2)
    assert found["input_ids"].tolist() == [[2, 3], [6, 7]]
    assert found["shift_labels"].tolist() == [[3, -100], [7, -100]]
    assert found["name"] == "a"
    assert "labels" not in found
    with pytest.raises(ArgumentError, match="sequences of 4 tokens, which are not to be divided by 3"):
        _slice_of({"input_ids": tokens, "labels": tokens}, rank=0, size=3)
