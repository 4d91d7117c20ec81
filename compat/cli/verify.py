"""`compat verify SCRIPT ARGS`: run a script under HF's Trainer and under compat's, and compare everything."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from compat.cli.terminal import NOTE, say
from compat.errors import CompatError, MissingLibraryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from compat.verification.report import Report

REPORT = "compat-verify.json"
"""The file of the report where nothing is said."""

EPILOG = """\
exit status:
  0 equal, 1 different, 2 nothing verified

examples:
  compat verify train.py --learning_rate 2e-5
  compat verify --steps 0 --repeats 1 train.py
  compat verify --devices 2 train.py
  compat verify --self
"""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""

OBSERVED = (sys.executable, "-W", "ignore", "-m", "compat.cli.observed")
"""What starts a run."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "verify",
        help="train with HF's Trainer and with compat's, and compare everything",
        description="Run a script of HF's Trainer under that and under compat's, and compare losses, "
        "weights, optimizer states, events, checkpoints, predictions, random states, time and memory. Each "
        "run has its own output folder, which is removed; nothing is pushed or reported.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--self",
        dest="itself",
        action="store_true",
        help="verify built-in set-ups on all devices of this machine",
    )
    parser.add_argument("--only", metavar="NAMES", help="with --self: these set-ups, as in fp32,ddp")
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        help="end each training after so many update steps; 0 trains to the end",
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="runs under each Trainer, in turn (default: 2)"
    )
    parser.add_argument("--devices", type=int, default=1, help="processes of a run, a device for each")
    parser.add_argument("--seed", type=int, default=42, help="set before the script begins (default: 42)")
    parser.add_argument(
        "--report",
        default=REPORT,
        metavar="FILE",
        help=f"the JSON report (default: {REPORT}); a PNG is beside it",
    )
    parser.add_argument(
        "--folder", metavar="DIR", help="where runs write meanwhile, in place of the system's /tmp"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module, as in python -m")
    parser.add_argument("script", metavar="SCRIPT", nargs="?", help="the script, or a module with -m")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's arguments")
    parser.set_defaults(main=main, options=tuple(parser._option_string_actions))


def main(namespace: argparse.Namespace) -> int:
    """Verify, print the report and write it.

    Returns:
        0 if both Trainers agree, 1 if they do not, 2 if nothing was verified.
    """
    from compat.upstream import children

    if problem := _problem(namespace):
        say("compat verify", problem)
        return 2
    if (local_rank := children.launched_rank()) is not None:
        # Runs need processes of their own, which the first process starts; the others have nothing to do.
        local, total = children.launched_size()
        if local != total:
            say("compat verify", "a job of several machines. Run it on one, with `--devices`.")
            return 2
        if local_rank:
            return 0
        namespace.devices = max(namespace.devices, local)
    try:
        return _survey(namespace) if namespace.itself else _verify(namespace)
    except CompatError as error:
        say("compat verify", error)
        return 2
    except KeyboardInterrupt:
        say("compat verify", "interrupted. Its runs are ended, their folders removed.", NOTE)
        return INTERRUPTED


def _problem(namespace: argparse.Namespace) -> str:
    """Return what is wrong with the command line, or nothing."""
    if namespace.itself == (namespace.script is not None):
        return "give a script with its arguments, or `--self` alone."
    if namespace.only and not namespace.itself:
        return f"`--only {namespace.only}`: names set-ups of `--self`. Leave it out, or give `--self`."
    if namespace.script and not namespace.module and not os.path.exists(namespace.script):
        return f"`{namespace.script}`: no such script. Give its path, or a module with -m."
    folder = os.path.dirname(os.path.abspath(namespace.report))
    if not os.path.isdir(folder):
        return f"`--report {namespace.report}`: there is no folder {folder}. Make it, or give another path."
    return ""


def _survey(namespace: argparse.Namespace) -> int:
    """Verify the built-in set-ups."""
    from compat.verification.machine import survey
    from compat.verification.report import save_json

    only = [name for name in (namespace.only or "").split(",") if name]
    with _bars() as bars:
        result = survey(
            OBSERVED,
            only=only,
            folder=namespace.folder,
            progress=lambda title: _showing(bars, f"{title}, ", 0),
        )
    _print(result)
    save_json(result.to_dict(), namespace.report)
    print(f"Report: {namespace.report}")
    return result.status


def _verify(namespace: argparse.Namespace) -> int:
    """Verify a script."""
    from compat.arguments.parser import without_secrets
    from compat.verification.runs import Script
    from compat.verification.verifying import verified

    words = [*(["-m"] if namespace.module else []), namespace.script, *namespace.args]
    with _bars() as bars:
        report = verified(
            Script(OBSERVED, words),
            " ".join(without_secrets(words)),
            steps=namespace.steps,
            repeats=namespace.repeats,
            devices=namespace.devices,
            seed=namespace.seed,
            folder=namespace.folder,
            progress=_showing(bars, "", namespace.steps),
        )
    _print(report)
    report.save(namespace.report)
    print(f"Report: {namespace.report}{_draw(report, namespace.report)}")
    return report.status


def _print(report: Any) -> None:
    from rich.console import Console

    # One line per row if another program reads the output.
    console = Console() if sys.stdout.isatty() else Console(width=1000, highlight=False)
    console.print(report.renderable())


def _draw(report: Report, path: str) -> str:
    """Draw the picture beside the report; return what to say about it."""
    from compat.verification.picture import draw

    if not (report.theirs and report.ours and report.ours[0].steps):
        return ""
    picture = f"{os.path.splitext(path)[0]}.png"
    try:
        draw(report, picture)
    except MissingLibraryError as error:
        return f" ({error})"
    return f", picture: {picture}"


def _bars() -> Progress:
    """Return bars on stderr, which vanish at the end; none where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _showing(bars: Progress, title: str, steps: int) -> Callable[[str, int], None]:
    """Return what shows the run that is under way as a bar.

    Args:
        bars: where.
        title: ahead of the name of the engine.
        steps: of a training; 0 if that is not known.
    """
    from compat.verification.job import TITLES

    for task in bars.task_ids:
        bars.remove_task(task)
    shown = ("", 0)

    def show(engine: str, done: int) -> None:
        nonlocal shown
        if engine != shown[0] or done < shown[1]:
            for task in bars.task_ids:
                bars.remove_task(task)
            bars.add_task(f"{title}under {TITLES[engine]}", total=steps or None)
        shown = (engine, done)
        # Of several trainings in a script, the bar shows all steps.
        bars.update(bars.task_ids[-1], completed=done, total=max(steps, done) if steps else None)

    return show
