"""How the processes of a job agree on the update step after which all of them stop."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed import DistNetworkError
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from compat.upstream.devices import ask

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Stop:
    """The end of a run.

    Attributes:
        step: the update step after which it stops.
        reason: a signal's number, or 0.
    """

    step: int
    reason: int


class LocalStop:
    """The trivial consensus of a single process.

    Attributes:
        ahead: update steps that are made after one proposes to stop; none, alone.
    """

    ahead = 0

    def __init__(self) -> None:
        self._stop: Stop | None = None

    def propose(self, step: int, reason: int, *, is_last: bool = False) -> None:
        """Propose to stop after update step `step`; the first proposal holds.

        Args:
            step: update steps made by then.
            reason: a signal's number, or 0.
            is_last: whether this process makes no further step, so that the others may have left.
        """
        self._stop = self._stop or Stop(step, reason)

    def look(self, *, is_last: bool = False) -> Stop | None:
        """What is agreed on, if anything is.

        Args:
            is_last: whether this process makes no further step, so that the others may have left.
        """
        return self._stop


class DistributedStop(LocalStop):
    """The processes of a job, through the store by which they have found each other.

    All look at the end of each update step. One that has a reason proposes a step that no other can have
    finished: each step reduces gradients over all processes, and the proposal lies in the store before its
    own part in the next one. A collective in each step would cost more than this query to the first process,
    and a dead process does not block the others.

    Args:
        device: where the processes compute.
    """

    _runs: Iterator[int] = itertools.count()

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._store = PrefixStore(f"compat/stop/{next(DistributedStop._runs)}", _get_default_store())
        # On a CPU a reduction is over when it returns; elsewhere it has only been asked for.
        self._device = None if device.type == "cpu" else device
        self._last: torch.Event | None = None
        self.ahead = 1 if self._device is None else 2

    def propose(self, step: int, reason: int, *, is_last: bool = False) -> None:
        """Propose to stop after update step `step`; the first proposal of the job holds."""
        if self._stop is None:
            with _without_first(is_last):
                self._keep(self._store.compare_set("stop", "", f"{step} {reason}"))

    def look(self, *, is_last: bool = False) -> Stop | None:
        """What is agreed on, if anything is."""
        if self._stop is None:
            self._wait_for_last()
            with _without_first(is_last):
                if self._store.check(["stop"]):
                    self._keep(self._store.get("stop"))
        return self._stop

    def _keep(self, told: bytes) -> None:
        step, reason = told.decode().split()
        self._stop = Stop(int(step), int(reason))

    def _wait_for_last(self) -> None:
        """Wait until the device has done with the step before this one: no process runs ahead by two."""
        if self._device is None:
            return
        event = torch.Event(self._device)
        event.record()
        if self._last is not None:
            try:
                self._last.synchronize()
            except RuntimeError:
                # The backend cannot wait for events. An error of the device itself is raised here again.
                ask(self._device.type, "synchronize")
        self._last = event


@contextlib.contextmanager
def _without_first(is_last: bool) -> Iterator[None]:
    """Tolerate that the first process has exited, together with the store if it hosts the store.

    Only at the end, where no process waits for another: earlier, a missing first process has died.
    """
    try:
        yield
    except DistNetworkError:
        if not is_last:
            raise


def stop_consensus(device: torch.device, world_size: int) -> LocalStop:
    """How the processes of this run agree.

    Args:
        device: where they compute.
        world_size: how many there are.
    """
    return DistributedStop(device) if world_size > 1 else LocalStop()
