"""Reads the records of a run, and flattens them into values by key."""

from __future__ import annotations

import collections
import itertools
import json
import re
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from compat.verification.quantities import PER_STEP, is_measured

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from compat.verification.job import Job

Line = dict[str, Any]


class Key(NamedTuple):
    """Where a value belongs.

    Attributes:
        train: the call of `train`, from 1; after the last one for what a script leaves behind.
        step: the update step, or None for the end of the call.
        quantity: a key of the table of quantities.
        name: of the value among those of the quantity.
    """

    train: int
    step: int | None
    quantity: str
    name: str


@dataclass
class Run:
    """What is known of a run.

    Attributes:
        engine: a key of `ENGINES`.
        status: the exit status; 0 if the script has ended well.
        tail: the last lines of its output, if it has failed.
        values: everything that is compared.
        trains: a line for each call of `train`: its trainer and its engine.
        steps: the steps of the first process: number, seconds, losses, peak memory.
        machine: devices and settings of torch, as the run has seen them.
        is_sharded: whether processes have held parts of a model.
    """

    engine: str
    status: int = 0
    tail: str = ""
    values: dict[Key, Any] = field(default_factory=dict)
    trains: list[Line] = field(default_factory=list)
    steps: list[Line] = field(default_factory=list)
    machine: Line = field(default_factory=dict)
    is_sharded: bool = False

    @property
    def seconds_per_step(self) -> float | None:
        """The median duration of a step, without the first one of each call; None without any."""
        later = [
            line["seconds"] for previous, line in itertools.pairwise(self.steps) if _follows(previous, line)
        ]
        return statistics.median(later) if later else None

    @property
    def peak_memory(self) -> Mapping[str, int]:
        """The peak of each kind of memory, in bytes."""
        return self.steps[-1]["memory"] if self.steps else {}


def _follows(previous: Line, line: Line) -> bool:
    return bool(previous["train"] == line["train"])


def read(job: Job, processes: int, status: int, tail: str) -> Run:
    """Read the records of a run.

    Args:
        job: the run.
        processes: how many it had.
        status: its exit status.
        tail: the end of its output.
    """
    run = Run(job.engine, status, tail)
    for rank in range(processes):
        lines = list(_lines(job.records(rank)))
        run.values.update(flatten(lines, f" on rank {rank}" if rank else ""))
        if rank == 0:
            run.trains = [line for line in lines if line["kind"] == "train"]
            run.machine = next((line for line in lines if line["kind"] == "machine"), {})
            run.is_sharded = any(line.get("sharded") for line in lines)
            run.steps = [line for line in lines if line["kind"] == "step"]
    return run


def _lines(path: str) -> Iterator[Line]:
    try:
        with open(path, encoding="utf-8") as file:
            for text in file:
                # The last one of a run that was killed may be cut off.
                if text.endswith("\n"):
                    yield json.loads(text)
    except FileNotFoundError:
        return


def flatten(lines: Sequence[Line], where: str = "") -> dict[Key, Any]:
    """Return the values of the records of one process.

    Args:
        lines: the records.
        where: what is appended to each name.
    """
    values: dict[Key, Any] = {}
    counts: collections.Counter[Any] = collections.Counter()
    for line in lines:
        for key, value in FLATTENED.get(line["kind"], _nothing)(line):
            # Of values with one key, such as two logs in one step, each is compared.
            counts[key] += 1
            nth = f" ({counts[key]})" if counts[key] > 1 else ""
            values[key._replace(name=f"{key.name}{nth}{where}")] = value
    return values


def _nothing(line: Line) -> Iterator[tuple[Key, Any]]:
    return iter(())


def _event(line: Line) -> Iterator[tuple[Key, Any]]:
    value = {name: line[name] for name in ("event", "step", "epoch", "flags")}
    yield Key(line["train"], line["step"], "events", ""), value


def _step(line: Line) -> Iterator[tuple[Key, Any]]:
    place = line["train"], line["step"]
    for number, loss in enumerate(line["losses"], start=1):
        yield Key(*place, "loss", f"micro-batch {number}"), loss
    yield Key(*place, "weight_sum", ""), line["weight_sum"]


def _end(line: Line) -> Iterator[tuple[Key, Any]]:
    train = line["train"]
    for entry in line["log_history"]:
        for name, value in entry.items():
            if name == "step" or is_measured(name):
                continue
            quantity = name if name in PER_STEP else "metrics"
            title = "the log" if name == "loss" else name if quantity == "metrics" else ""
            yield Key(train, entry.get("step"), quantity, title), value
    for quantity in ("state", "weights", "optimizer", "scheduler", "generators"):
        for name, value in line[quantity].items():
            yield Key(train, None, quantity, name), value


def _files(line: Line) -> Iterator[tuple[Key, Any]]:
    for name, value in line["files"].items():
        # Names of arguments and metrics may be anywhere in a nested file.
        if not any(is_measured(part) for part in re.split(r"[.\[\]: ]+", name)):
            yield Key(LAST, None, "files", name), value


def _pass(line: Line) -> Iterator[tuple[Key, Any]]:
    for name, value in line["result"].items():
        if not is_measured(name.rpartition(".")[2]):
            yield Key(line["train"], None, "passes", f"{line['call']}: {name}"), value


LAST = 1_000_000
"""In place of the number of a call of `train`: after all of them."""

FLATTENED = {"event": _event, "step": _step, "end": _end, "files": _files, "pass": _pass}
"""Kind of a line → the function that yields its keys and values."""
