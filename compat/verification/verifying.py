"""Runs a script or function under both Trainers in turn, and judges what was recorded."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from typing import TYPE_CHECKING, Any

from compat.errors import ArgumentError, VerificationError
from compat.upstream.children import unwound_by_signals
from compat.upstream.devices import ask, built_for
from compat.verification.comparison import compare
from compat.verification.isolation import NOTES
from compat.verification.job import TITLES
from compat.verification.report import DIFFERS, EQUAL, NOTHING, Report, verdict_of
from compat.verification.runs import Function, Runs, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from compat.verification.comparison import Comparison
    from compat.verification.records import Run

STEPS, REPEATS, SEED = 20, 2, 42
"""What is run where nothing is said."""

MOST = 5
"""Runs of HF's Trainer by which its spread is measured, at most."""


def verify(
    function: Callable[[], Any],
    *,
    steps: int = STEPS,
    repeats: int = REPEATS,
    devices: int = 1,
    seed: int = SEED,
    folder: str | None = None,
) -> Report:
    """Train with HF's Trainer and with compat's, and compare everything that can be compared.

    For notebooks and other code without a script; `compat verify SCRIPT` is the same for scripts. `function`
    runs several times, each time in processes that are forked from this one, with nothing installed for HF's
    Trainer and after `compat.install()` for compat's. It has to make its model, arguments and Trainer itself,
    from the names of transformers or of a library on top of it. On a CPU, it trains with one thread: those of
    this process are not there after a fork. Nothing in this process is changed.

    Args:
        function: trains; takes no argument. It need not be importable.
        steps: update steps after which each call of `train` is ended; 0 trains to the end.
        repeats: runs under each Trainer.
        devices: processes of a run, a device for each.
        seed: of the generators of Python, NumPy and torch, set before `function` is called.
        folder: where the runs write, in a folder of their own that is removed; the system's folder for
            temporary files if None.

    Returns:
        The report; `print` shows its table and its verdict, `report.equal` is whether both agree.

    Raises:
        ArgumentError: a number is too small, this system cannot fork, or this process has used a GPU.
        VerificationError: the disk is full.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        msg = (
            "`function`: this system cannot fork processes. Write it into a script, and use `compat verify`."
        )
        raise ArgumentError(msg)
    # Not `devices_in_use`: some devices cannot tell, and survive a fork; looking for a GPU may begin its use.
    if (kind := built_for()) is not None and ask(kind, "is_initialized", default=False):
        msg = (
            "`function`: this process has used a GPU, and processes that are forked from it cannot. Restart "
            "the notebook, and use GPUs inside of the function alone."
        )
        raise ArgumentError(msg)
    name = getattr(function, "__qualname__", repr(function))
    return verified(
        Function(function),
        name,
        steps=steps,
        repeats=repeats,
        devices=devices,
        seed=seed,
        folder=folder,
    )


def verified(
    target: Script | Function,
    title: str,
    *,
    steps: int = STEPS,
    repeats: int = REPEATS,
    devices: int = 1,
    seed: int = SEED,
    folder: str | None = None,
    progress: Callable[[str, int], None] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Report:
    """Run a target under both Trainers in turn, and compare.

    Args:
        target: what to run.
        title: how the report calls it.
        steps: update steps of each call of `train`; 0 for all.
        repeats: runs under each Trainer; HF's gets up to `MOST` where it differs from itself.
        devices: processes of a run.
        seed: of the generators.
        folder: where to make a folder for the runs; it is removed at the end, whatever ends this.
        progress: called again and again with the engine that runs, and the steps it has made.
        variables: of the environment of the runs, in addition to this process's.

    Raises:
        ArgumentError: a number is too small.
        VerificationError: the disk is full.
    """
    settings = {"steps": steps, "repeats": repeats, "devices": devices, "seed": seed}
    for name, least in (("steps", 0), ("repeats", 1), ("devices", 1), ("seed", 0)):
        if settings[name] < least:
            msg = f"`{name}={settings[name]}`: it must be {least} or more. Give another number."
            raise ArgumentError(msg)
    report = Report(NOTHING, "", {"target": title, **settings}, notes=NOTES)
    with unwound_by_signals(), _folder(folder) as own:
        runs = Runs(target, own, steps, seed, devices, progress, variables or {})
        for _ in range(repeats):
            if _run(runs, report) is not None:
                return report
        report.comparison = _judged(runs, report)
    report.status = DIFFERS if report.comparison.first else EQUAL
    report.verdict = verdict_of(report.comparison, report.theirs[0])
    return report


def _judged(runs: Runs, report: Report) -> Comparison:
    """Compare; upon differences, run more to find out by how much HF's Trainer differs from itself."""
    comparison = compare(report.theirs, report.ours)
    if comparison.first and len(report.theirs) == 1:
        report.theirs.append(runs.run("hf"))
        comparison = compare(report.theirs, report.ours)
    # Where HF's runs are the same, more of them say nothing more.
    while comparison.first and comparison.has_spread and len(report.theirs) < MOST:
        report.theirs.append(runs.run("hf"))
        comparison = compare(report.theirs, report.ours)
    return comparison


@contextlib.contextmanager
def _folder(folder: str | None) -> Iterator[str]:
    try:
        made = tempfile.TemporaryDirectory(prefix="verify-", dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        msg = f"`folder={folder!r}`: no folder can be made there ({error.strerror}). Give another one."
        raise VerificationError(msg) from error
    with made as own:
        yield own


def _run(runs: Runs, report: Report) -> Report | None:
    """Run under HF's Trainer and under compat's; return the report if there is nothing more to run."""
    theirs = runs.run("hf")
    report.theirs.append(theirs)
    if reason := _unusable(theirs):
        report.verdict = f"nothing verified: {reason}"
        return report
    ours = runs.run("compat")
    report.ours.append(ours)
    if ours.status:
        report.status = DIFFERS
        report.verdict = (
            f"differs: the script ends well under HF's Trainer, and fails under compat's after "
            f"{len(ours.steps)} steps (status {ours.status}):\n{ours.tail}"
        )
        return report
    if ours.is_sharded and not theirs.is_sharded:
        report.verdict = (
            "nothing verified: compat's Trainer has sharded the model, and HF's has not, as on a CPU. Leave "
            "`fsdp` out, or verify where there are GPUs."
        )
        return report
    if reason := _not_ours(ours):
        report.status = DIFFERS
        report.verdict = f"differs: {reason}"
        return report
    return None


def _unusable(run: Run) -> str:
    """Return why a run of HF's Trainer has nothing to compare with, or nothing."""
    if run.status:
        return f"the script fails under HF's own Trainer (status {run.status}):\n{run.tail}"
    if not run.steps:
        return (
            "the script has never trained. Give one that calls the `train` method of HF's Trainer, or of one "
            "derived from it."
        )
    if on_compat := next((t["engine"] for t in run.trains if t["engine"].startswith("compat.")), ""):
        return (
            f"the script itself trains with `{on_compat}`. Give one that imports from transformers: `compat "
            "verify` replaces its Trainer."
        )
    return ""


def _not_ours(run: Run) -> str:
    if not run.trains:
        return f"the script trains under {TITLES['hf']}, and never under compat's."
    other = next((t for t in run.trains if not t["engine"].startswith("compat.")), None)
    if other is None:
        return ""
    return f"`{other['trainer']}` was not put on compat's Trainer: its loop is that of `{other['engine']}`."
