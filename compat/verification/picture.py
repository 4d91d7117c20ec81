"""Draws both Trainers' losses, their difference, and the time of each step."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from compat.errors import MissingLibraryError, VerificationError
from compat.verification.job import TITLES

if TYPE_CHECKING:
    from compat.verification.records import Run
    from compat.verification.report import Report

COLORS = {"hf": "tab:orange", "compat": "tab:blue"}


def draw(report: Report, path: str) -> None:
    """Draw a report.

    Args:
        report: of runs that have trained.
        path: of the PNG file; an existing one is replaced.

    Raises:
        MissingLibraryError: matplotlib is not installed.
        VerificationError: the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        msg = 'no picture: matplotlib is not installed. Run `pip install "lightning-hf-compat[plot]"`.'
        raise MissingLibraryError(msg)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 8), layout="constrained")
    losses, gaps, times = figure.subplots(3, 1, sharex=True)
    for run, style in ((report.theirs[0], "-"), (report.ours[0], "--")):
        numbers = range(1, len(run.steps) + 1)
        losses.plot(numbers, _losses(run), style, color=COLORS[run.engine], label=TITLES[run.engine])
        milliseconds = [1e3 * step["seconds"] for step in run.steps]
        times.plot(numbers, milliseconds, style, color=COLORS[run.engine], label=TITLES[run.engine])
    pairs = [("compat against HF", "tab:blue", report.ours[0])]
    if len(report.theirs) > 1:
        pairs.append(("HF against itself", "tab:orange", report.theirs[1]))
    for label, color, run in pairs:
        _draw_gaps(gaps, _losses(report.theirs[0]), _losses(run), label, color)
    losses.set_ylabel("loss")
    gaps.set_ylabel("difference of the loss")
    gaps.set_yscale("log")
    times.set_ylabel("ms per step")
    times.set_yscale("log")
    times.set_xlabel("update step of the script")
    times.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (losses, gaps, times):
        axes.legend()
    figure.suptitle(report.verdict.partition(":")[0])
    _save(figure, path)


def _draw_gaps(axes: Any, one: list[float], other: list[float], label: str, color: str) -> None:
    differences = [abs(left - right) for left, right in zip(one, other, strict=False)]
    # A logarithm has no place for those that are 0.
    found = [(step, value) for step, value in enumerate(differences, start=1) if value > 0]
    none = "" if found else ": none"
    axes.plot(*(zip(*found, strict=True) if found else ((), ())), ".-", color=color, label=label + none)


def _losses(run: Run) -> list[float]:
    return [sum(step["losses"]) for step in run.steps]


def _save(figure: Any, path: str) -> None:
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        try:
            figure.savefig(partial, format="png", dpi=110)
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.remove(partial)
    except OSError as error:
        msg = f"`report`: the picture {path!r} cannot be written ({error.strerror}). Give another path."
        raise VerificationError(msg) from error
