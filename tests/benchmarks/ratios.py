"""Compares `compat` with Hugging Face in all that `cases.py` lists, and with an earlier commit.

``ratios.py`` lets the contenders take turns for several rounds, each case in a process of its own and on one
thread, prints the ratios of the medians and writes them to docs/benchmarks.md with a picture.
``ratios.py --against REV`` has the code of another commit take turns with that of the working tree, and
writes nothing. ``ratios.py --case NAME --contender PACKAGE`` is such a process.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median

import torch
from bench import ENVIRONMENT
from cases import CASES
from page import DOCS, versions, write_section

ROOT = Path(__file__).parents[2]
HEADING = "What else a script waits for"
MARK = "measured: "
OURS, BARE, BEFORE = "compat", "bare", "before"

Times = dict[tuple[str, str], float]
"""Case and contender → its median."""


def work(case: str, contender: str) -> None:
    """Be the process of one case and one contender."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        value = CASES[case].measure(contender, Path(folder))
    print(f"{MARK}{value}", flush=True)


def start(case: str, contender: str, tree: Path) -> float:
    """Have one case measured in a new process, with the code of a tree."""
    package = OURS if contender == BEFORE else contender
    done = subprocess.run(
        [sys.executable, __file__, "--case", case, "--contender", package],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        sys.exit(f"{case}, {contender}: no result.\n{done.stderr[-3000:]}")
    return float(lines[-1].removeprefix(MARK))


def contenders(case: str, reference: str | None) -> list[str]:
    """Who takes turns in a case."""
    return [*([BARE] if CASES[case].has_bare else []), reference or CASES[case].reference, OURS]


def measure(cases: list[str], rounds: int, reference: str | None, trees: dict[str, Path]) -> Times:
    """Let the contenders take turns, and return the medians."""
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for case in cases:
            print(f"round {number + 1} of {rounds}: {case}", file=sys.stderr)
            for name in contenders(case, reference):
                found.setdefault((case, name), []).append(start(case, name, trees.get(name, ROOT)))
    return {key: median(values) for key, values in found.items()}


def ratio(times: Times, case: str, reference: str | None) -> float:
    """Our number in units of the reference's, without the bare loop's where the case has one."""
    bare = times.get((case, BARE), 0.0)
    return (times[case, OURS] - bare) / (times[case, reference or CASES[case].reference] - bare)


def tabulate(times: Times, cases: list[str], reference: str | None) -> str:
    """The ratios as a Markdown table."""
    rows = [f"| what | `{OURS}`, {reference or 'HF'} = 1 |", "|---|---:|"]
    rows += [f"| {CASES[case].about} | {ratio(times, case, reference):.2f} |" for case in cases]
    return "\n".join(rows)


def draw(times: Times, cases: list[str], path: Path) -> None:
    """Save a bar for each ratio, with a line where Hugging Face stands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.42 * len(cases) + 0.8), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [CASES[case].about.replace("`", "") for case in cases],
        [ratio(times, case, None) for case in cases],
        0.6,
    )
    axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("compat.Trainer, transformers.Trainer = 1 (less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def write_page(times: Times, cases: list[str], rounds: int) -> None:
    """Write the section of docs/benchmarks.md and its picture."""
    draw(times, cases, DOCS / "ratios.png")
    write_section(
        HEADING,
        f"""Written by `make bench-ratios`. Each number is that of `compat.Trainer` divided by that of
`transformers.Trainer`, the medians of {rounds} processes each that took turns, on one CPU thread, with a
model of two linear layers. Overhead is what is left when the time of a bare PyTorch loop is taken off both.
Times are processor times; from the command to the first step the clock counts.

{versions()}

![Ratios to transformers.Trainer](ratios.png)

{tabulate(times, cases, None)}""",
    )


def check_out(revision: str, folder: Path) -> Path:
    """The tree of another commit."""
    archive = subprocess.run(
        ["git", "archive", revision, "compat"],  # noqa: S607 (whichever git there is)
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="be the worker for this one")
    references = sorted({case.reference for case in CASES.values()})
    parser.add_argument("--contender", choices=[BARE, OURS, *references])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--against", metavar="REV", help="a commit to compare with, in the place of Hugging Face"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Be the worker, or run the workers and report."""
    options = parse()
    if options.case:
        work(options.case, options.contender)
        return
    if options.against:
        with tempfile.TemporaryDirectory() as folder:
            trees = {BEFORE: check_out(options.against, Path(folder))}
            times = measure(options.cases, options.rounds, BEFORE, trees)
        print(tabulate(times, options.cases, BEFORE))
        return
    times = measure(options.cases, options.rounds, None, {})
    print(tabulate(times, options.cases, None))
    if options.cases == list(CASES):
        write_page(times, options.cases, options.rounds)


if __name__ == "__main__":
    main()
