from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.distributed import DistNetworkError, HashStore, TCPStore

from compat.upstream import stop_consensus
from compat.upstream.stop_consensus import DistributedStop, LocalStop, Stop

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    made = HashStore()
    monkeypatch.setattr(stop_consensus, "_get_default_store", lambda: made)
    return made


def ranks(monkeypatch: pytest.MonkeyPatch, run: int = 0) -> tuple[DistributedStop, DistributedStop]:
    """Two processes in the same run."""
    monkeypatch.setattr(DistributedStop, "_runs", itertools.repeat(run))
    return DistributedStop(CPU), DistributedStop(CPU)


def test_one_process_agrees_with_itself() -> None:
    alone = LocalStop()
    assert alone.look() is None
    alone.propose(3, 15)
    alone.propose(5, 2)
    assert alone.look() == Stop(3, 15)


def test_the_first_proposal_holds_for_all(store: HashStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ranks(monkeypatch)
    assert first.look() is None
    assert second.look() is None
    second.propose(4, 15)
    first.propose(5, 2)
    assert first.look() == second.look() == Stop(4, 15)


def test_a_run_hears_nothing_of_the_one_before(store: HashStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = ranks(monkeypatch)
    first.propose(4, 15)
    again, _ = ranks(monkeypatch, run=1)
    assert again.look() is None


def test_at_the_end_the_first_process_may_have_left_with_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    first = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other = TCPStore("127.0.0.1", first.port, is_master=False)
    monkeypatch.setattr(stop_consensus, "_get_default_store", lambda: other)
    together = DistributedStop(CPU)
    assert together.look() is None
    del first
    with pytest.raises(DistNetworkError):
        together.look()
    together.propose(4, 15, is_last=True)
    assert together.look(is_last=True) is None


def test_where_reductions_are_only_asked_for_no_process_runs_ahead_by_two_steps(
    store: HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is not there: each look marks the end of a step, and waits for the mark before."""
    told: list[Any] = []

    class Event:
        count = itertools.count(1)

        def __init__(self, device: torch.device) -> None:
            self.number = next(Event.count)

        def record(self) -> None:
            told.append(("marks", self.number))

        def synchronize(self) -> None:
            told.append(("waits for", self.number))

    monkeypatch.setattr(torch, "Event", Event)
    together = DistributedStop(GPU)
    assert (together.ahead, DistributedStop(CPU).ahead) == (2, 1)
    for _ in range(3):
        together.look()
    marks, waits = "marks", "waits for"
    assert told == [(marks, 1), (marks, 2), (waits, 1), (marks, 3), (waits, 2)]
