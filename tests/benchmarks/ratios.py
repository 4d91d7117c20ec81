"""Compares `compat` with Hugging Face in all that `cases.py` lists, and with an earlier commit.

``ratios.py`` lets the contenders take turns for several rounds, each case in processes of its own and on one
thread, prints the ratios of the medians and writes them to docs/benchmarks.md with a picture. Where memory
comes to lie changes the time of a small step by more than contenders differ. Therefore their processes are
forked from one that has imported them all, unless the start or the memory of a process is what is measured.
``ratios.py --against REV`` has the code of another commit take turns with that of the working tree, and
writes nothing. ``ratios.py --case NAME --contender PACKAGE …`` is such a process.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median

import torch
from bench import ENVIRONMENT, TURNS
from cases import CASES
from page import DOCS, versions, write_section

ROOT = Path(__file__).parents[2]
HEADING = "What else a script waits for"
MARK = "measured: "

OURS, BARE, BEFORE = "compat", "bare", "before"

Times = dict[tuple[str, str], float]
"""Case and contender → its median."""


def work(case: str, names: list[str]) -> None:
    """Be the process of a case, and of one contender or of several that take turns."""
    torch.set_num_threads(1)
    if len(names) == 1:
        tell(case, *names)
        return
    for name in set(names) - {BARE}:
        importlib.import_module(name)
    for name in names * TURNS:
        if not (child := os.fork()):
            # Touches each object, whose memory the system copies then and not while it is measured.
            gc.collect()
            tell(case, name)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{case}, {name}: failed")


def tell(case: str, name: str) -> None:
    """Measure a case, and print the number."""
    with tempfile.TemporaryDirectory() as folder:
        value = CASES[case].measure(name, Path(folder))
    print(f"{MARK}{name} {value}", flush=True)


def start(case: str, names: list[str], tree: Path) -> dict[str, list[float]]:
    """Have one case measured in a new process, with the code of a tree."""
    packages = {OURS if name == BEFORE else name: name for name in names}
    done = subprocess.run(
        [sys.executable, __file__, "--case", case, "--contender", *packages],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, list[float]] = {name: [] for name in names}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            package, value = line.removeprefix(MARK).split()
            found[packages[package]].append(float(value))
    if not all(found.values()):
        sys.exit(f"{case}, {', '.join(names)}: no result.\n{done.stderr[-3000:]}")
    return found


def contenders(case: str, reference: str | None) -> list[str]:
    """Who takes turns in a case."""
    return [*([BARE] if CASES[case].has_bare else []), reference or CASES[case].reference, OURS]


def measure(cases: list[str], rounds: int, reference: str | None, trees: dict[str, Path]) -> Times:
    """Let the contenders take turns, and return the medians."""
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for case in cases:
            print(f"round {number + 1} of {rounds}: {case}", file=sys.stderr)
            names = contenders(case, reference)
            is_shared = reference is None and not CASES[case].alone
            for group in [names] if is_shared else [[name] for name in names]:
                for name, values in start(case, group, trees.get(group[0], ROOT)).items():
                    found.setdefault((case, name), []).extend(values)
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
    axes.set_xlabel("transformers.Trainer = 1, less is better")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def write_page(times: Times, cases: list[str], rounds: int) -> None:
    """Write the section of docs/benchmarks.md and its picture."""
    draw(times, cases, DOCS / "ratios.png")
    write_section(
        HEADING,
        f"""Written by `make bench-ratios`. Each number is that of `compat.Trainer` divided by that of
`transformers.Trainer`, medians over {rounds} processes, on one CPU thread, with a model of two linear layers.
The contenders take turns in processes of their own: {TURNS} that are forked from each of these, so that
their memory lies alike; one of each where start, memory or a resumption is measured. Overhead is what is left
when the time of a bare PyTorch loop is taken off both.
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
    parser.add_argument("--contender", nargs="+", choices=[BARE, OURS, *references])
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
