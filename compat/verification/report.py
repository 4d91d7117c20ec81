"""What comes of a verification: a verdict, a table, and JSON for a report of a defect."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from compat.errors import VerificationError
from compat.verification.comparison import FACTOR, MEANINGS, MISSING
from compat.verification.job import TITLES
from compat.verification.quantities import ORDER, QUANTITIES
from compat.verification.records import LAST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compat.verification.comparison import Comparison, Difference
    from compat.verification.records import Run

EQUAL, DIFFERS, NOTHING = 0, 1, 2
"""The exit statuses: both Trainers agree; they do not; nothing was verified."""

SCHEMA: Final = 1
"""The version of the JSON's layout."""

SHOWN: Final = 50
"""Differences that the JSON has in full."""

PACKAGES: Final = (
    "torch",
    "transformers",
    "accelerate",
    "lightning",
    "numpy",
    "trl",
    "sentence-transformers",
    "setfit",
    "peft",
    "deepspeed",
    "lightning-hf-compat",
)
"""Packages whose releases are in the JSON."""

Cells = tuple[str, ...]


@dataclass
class Report:
    """The result of a verification.

    Attributes:
        status: 0 if both Trainers agree, 1 if they do not, 2 if nothing was verified.
        verdict: the result in a sentence.
        settings: what was run, and how.
        theirs: the runs under HF's Trainer.
        ours: the runs under compat's.
        comparison: of the runs; None if they could not be compared.
        notes: what a reader has to know about the runs.
    """

    status: int
    verdict: str
    settings: dict[str, Any] = field(default_factory=dict)
    theirs: list[Run] = field(default_factory=list)
    ours: list[Run] = field(default_factory=list)
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both Trainers agree."""
        return self.status == EQUAL

    def __str__(self) -> str:
        """The table and the verdict, as text."""
        from rich.console import Console

        console = Console(width=100, highlight=False)
        with console.capture() as captured:
            console.print(self.renderable())
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def renderable(self) -> Any:
        """Return the table, the notes and the verdict for a console of rich."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [*self._tables(), *(Text(note, style="dim") for note in self.notes)]
        return Group(*parts, Text(self.verdict, style=f"bold {COLORS[self.status]}"))

    def _tables(self) -> list[Any]:
        from rich.text import Text

        tables = []
        if self.comparison is not None:
            tables += [table(HEADINGS, self.rows()), Text()]
        if self.ours and self.theirs:
            tables += [table(("", "HF", "compat", ""), self.costs()), Text()]
        return tables

    def rows(self) -> list[Cells]:
        """Return the cells of the table of quantities."""
        assert self.comparison is not None
        return [
            (
                row.title,
                str(row.compared),
                "" if row.spread is None else _amount(row.spread),
                _amount(row.amount),
                row.verdict + (f" ({row.differs})" if row.differs else ""),
            )
            for row in self.comparison.rows
            if row.compared
        ]

    def costs(self) -> list[Cells]:
        """Return the cells of the table of time and memory: the best of all runs."""
        cells = []
        seconds = [_best(run.seconds_per_step for run in runs) for runs in (self.theirs, self.ours)]
        if None not in seconds:
            times = (f"{1e3 * (value or 0):.1f} ms" for value in seconds)
            cells.append(("time per step", *times, f"median of the steps, first one left out{self._vary()}"))
        for kind in self.theirs[0].peak_memory:
            peaks = [_best(run.peak_memory.get(kind) for run in runs) for runs in (self.theirs, self.ours)]
            if None not in peaks:
                memory = (f"{(value or 0) / 2**20:.0f} MiB" for value in peaks)
                cells.append((f"peak memory, {kind}", *memory, PEAKS[kind]))
        return cells

    def _vary(self) -> str:
        """Say by how much the time of one Trainer varies: a difference of less than that means nothing."""
        ratios = []
        for runs in (self.theirs, self.ours):
            seconds = [run.seconds_per_step for run in runs if run.seconds_per_step]
            if len(seconds) > 1:
                ratios.append(max(seconds) / min(seconds) - 1)
        if not ratios:
            return ""
        return f"; the fastest run, runs of one Trainer vary by {max(ratios):.0%}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; numbers that JSON does not have are texts."""
        comparison = self.comparison
        content = {
            "schema": SCHEMA,
            "status": self.status,
            "verdict": self.verdict,
            "settings": self.settings,
            "quantities": []
            if comparison is None
            else [{**vars(r), "verdict": r.verdict} for r in comparison.rows],
            "differences": [] if comparison is None else [_plain(d) for d in comparison.differences[:SHOWN]],
            "runs": [_run(run) for run in (*self.theirs, *self.ours)],
            "notes": list(self.notes),
            "meanings": MEANINGS,
            "machine": {"platform": platform.platform(), "python": platform.python_version()},
            "packages": _releases(),
        }
        plain: dict[str, Any] = _finite(content)
        return plain

    def save(self, path: str) -> None:
        """Write the JSON; the file appears whole or not at all.

        Args:
            path: of the file; an existing one is replaced.

        Raises:
            VerificationError: it cannot be written.
        """
        save_json(self.to_dict(), path)


HEADINGS: Final = ("", "values", "HF against itself", "compat against HF", "verdict")

PEAKS: Final = {
    "gpu": "allocated by torch on the GPU",
    "process": "resident, with all libraries (compat's process also has Lightning loaded)",
}
"""Kind of memory → what is measured."""


def save_json(content: dict[str, Any], path: str) -> None:
    """Write a report as JSON; the file appears whole or not at all.

    Raises:
        VerificationError: it cannot be written.
    """
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        try:
            with open(partial, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, allow_nan=False)
                file.write("\n")
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.remove(partial)
    except OSError as error:
        msg = (
            f"`report={path!r}`: cannot be written ({error.strerror}). Give a path on another disk or folder."
        )
        raise VerificationError(msg) from error


def table(headings: Cells, rows: Sequence[Cells]) -> Any:
    """Return a table of rich, without lines; verdicts have their colors."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell, style=STYLES.get(cell.partition(" (")[0], "")) for cell in row))
    return made


COLORS: Final = {EQUAL: "green", DIFFERS: "red", NOTHING: "yellow"}

STYLES: Final = {"equal": "green", "within spread": "green", "differs": "red", "not comparable": "yellow"}


def _amount(amount: float) -> str:
    if amount == 0:
        return "same"
    if amount == math.inf:
        return "not the same"
    return "another bit" if amount < SMALLEST else f"{amount:.2g}"


SMALLEST: Final = 1e-300
"""Below it, a difference says only that the bits are not the same."""


def _best(values: Any) -> float | None:
    found = [value for value in values if value is not None]
    return min(found) if found else None


def sentence(difference: Difference) -> str:
    """Describe a difference, with both values."""
    key = difference.key
    noun = QUANTITIES[ORDER[key.quantity]].noun.format(name=key.name).strip()
    if key.train == LAST:
        place = "after the script"
    else:
        step = "the end" if key.step is None else f"step {key.step}"
        place = f"at {step} of training {key.train}"
    values = f"{shown(difference.theirs)} under HF's Trainer, {shown(difference.ours)} under compat's"
    size = "" if difference.amount == math.inf else f" (difference {_amount(difference.amount)})"
    return f"{place}, {noun}: {values}{size}"


def shown(value: Any) -> str:
    """Return a recorded value as text."""
    if value == MISSING:
        return "missing"
    if isinstance(value, dict) and "sha256" in value:
        start = ", ".join(f"{number!r}" for number in value["sample"][:3])
        return f"{value['dtype']}{value['shape']} of {start} …, sha256 {value['sha256'][:12]}"
    if isinstance(value, dict) and "event" in value:
        return f"{value['event']} at step {value['step']} {value['flags']}"
    return repr(value)


def _plain(difference: Difference) -> dict[str, Any]:
    key = {
        **difference.key._asdict(),
        "train": None if difference.key.train == LAST else difference.key.train,
    }
    return {
        **key,
        "hf": difference.theirs,
        "compat": difference.ours,
        "amount": difference.amount,
        "sentence": sentence(difference),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "engine": run.engine,
        "title": TITLES[run.engine],
        "status": run.status,
        "end_of_output": run.tail,
        "trainings": run.trains,
        "values": len(run.values),
        "machine": run.machine,
        "seconds_per_step": run.seconds_per_step,
        "peak_memory": dict(run.peak_memory),
        "steps": run.steps,
    }


def _releases() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def verdict_of(comparison: Comparison, run: Run) -> str:
    """Return the verdict of a comparison in a sentence."""
    if comparison.first is not None:
        return f"differs: first {sentence(comparison.first)}."
    values = sum(row.compared for row in comparison.rows)
    trainings = f" of {len(run.trains)} trainings" if len(run.trains) > 1 else ""
    extent = f"{len(run.steps)} steps{trainings}, {values} values"
    if comparison.is_exact:
        return f"equal: {extent}, the same to the bit."
    return (
        f"equal within the spread of HF's Trainer: {extent}. Its own runs differ from each other, and compat "
        f"differs from them by at most {FACTOR} times as much."
    )
