"""Compares the cost of an update step: bare PyTorch, Hugging Face, plain Lightning, `compat`.

``bench.py`` lets the contenders take turns on one thread, in several processes one after the other, and
writes the medians to docs/benchmarks.md. They share a process: where its memory comes to lie changes the
time of a small step by more than they differ. ``bench.py --contender NAME …`` is such a process: it prints
a line of JSON for each case and turn. ``bench.py --processes 2`` has torchrun start two processes instead of
each, which the contenders share likewise, and writes the page's second half.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from statistics import median
from time import sleep
from typing import TYPE_CHECKING

import torch
from contenders import CASES, CONTENDERS, Job, work
from page import DOCS, versions, write_section

if TYPE_CHECKING:
    from pathlib import Path

ACCUMULATIONS = (1, 8)
CELLS = [(model, accumulation) for model in CASES for accumulation in ACCUMULATIONS]
QUICK_STEPS = 40
TURNS = 3
"""Turns of the contenders in one process."""
DISTRIBUTED = ("hf", "compat")

# Large blocks are kept once they are allocated: whether glibc gives them back to the system, and pays
# for it at the next step, hangs on chance and can outweigh all that is measured here.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# Milliseconds per update step by contender, model and accumulation.
Times = dict[tuple[str, str, int], float]


def run_worker(options: argparse.Namespace) -> None:
    """Prints a line of JSON for each case that the options ask for."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for model in options.model:
            for accumulation in options.accumulation:
                steps = CASES[model].steps[accumulation]
                steps = min(steps, options.steps or steps)
                job = Job(model, accumulation, steps, folder, options.processes)
                for name in options.contender * (1 if len(options.contender) == 1 else TURNS):
                    result = work(name, job)
                    if os.environ.get("RANK", "0") == "0":
                        print(json.dumps(result), flush=True)
    if options.processes > 1:
        # torch's gloo threads let go of the last tensors only while Python runs.
        sleep(0.5)


def start_worker(contenders: list[str], options: argparse.Namespace) -> list[dict]:
    """Runs contenders through all cases in a new process and returns their results."""
    command = [sys.executable]
    if options.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.processes}"]
    command += [__file__, "--contender", *contenders, "--processes", str(options.processes)]
    command += ["--model", *options.model]
    command += ["--accumulation", *map(str, options.accumulation)]
    command += ["--steps", str(options.steps)] if options.steps else []
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
    )
    # Trainers may print a summary of their own among the results.
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"contender"')]
    return [json.loads(line) for line in lines]


def measure(options: argparse.Namespace) -> Times:
    """Lets the contenders take turns and returns the medians over all rounds."""
    runs: dict[tuple[str, str, int], list[float]] = {}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}: {', '.join(options.contenders)}", file=sys.stderr)
        for result in start_worker(options.contenders, options):
            key = (result["contender"], result["model"], result["accumulation"])
            runs.setdefault(key, []).append(result["milliseconds"])
    return {key: median(values) for key, values in runs.items()}


def tabulate(times: Times, options: argparse.Namespace) -> str:
    """Returns the results as a Markdown table."""
    rows = [
        "| model | accumulation | contender | ms per step | bare = 1 | overhead, HF = 1 |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for model in options.model:
        for accumulation in options.accumulation:
            cell = {name: times[name, model, accumulation] for name in options.contenders}
            for name, time in cell.items():
                ratio = f"{time / cell['bare']:.2f}" if "bare" in cell else ""
                rows.append(
                    f"| {CASES[model].about} | {accumulation} | {CONTENDERS[name].name} "
                    f"| {time:.3f} | {ratio} | {compare_overhead(cell, name, model)} |"
                )
    return "\n".join(rows)


def compare_overhead(cell: dict[str, float], name: str, model: str) -> str:
    """Returns what a contender adds to the bare loop, in units of what Hugging Face adds.

    Only where the model is so small that the difference of two times is more than noise.
    """
    if model != "tiny" or name == "bare" or not {"bare", "hf"} <= cell.keys():
        return ""
    return f"{(cell[name] - cell['bare']) / (cell['hf'] - cell['bare']):.2f}"


def tabulate_distributed(times: Times, options: argparse.Namespace) -> str:
    """Returns the results of several processes as a Markdown table."""
    rows = [
        "| model | accumulation | transformers.Trainer, ms per step | compat.Trainer, ms per step | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for model in options.model:
        for accumulation in options.accumulation:
            theirs, ours = (times[name, model, accumulation] for name in DISTRIBUTED)
            rows.append(
                f"| {CASES[model].about} | {accumulation} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.2f} |"
            )
    return "\n".join(rows)


def draw(times: Times, options: argparse.Namespace, path: Path) -> None:
    """Saves a bar chart of the time per step in units of the bare loop's."""
    from matplotlib.figure import Figure

    cells = [cell for cell in CELLS if cell[0] in options.model and cell[1] in options.accumulation]
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    count = len(options.contenders)
    width = 0.8 / count
    for place, name in enumerate(options.contenders):
        ratios = [times[(name, *cell)] / times[("bare", *cell)] for cell in cells]
        centres = [index + (place - (count - 1) / 2) * width for index in range(len(cells))]
        bars = axes.bar(centres, ratios, 0.92 * width, label=CONTENDERS[name].name)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
    labels = [f"{CASES[model].about}\naccumulation {number}" for model, number in cells]
    axes.set_xticks(range(len(cells)), labels, fontsize=8)
    axes.set_ylabel("time per update step,\nbare loop = 1")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def write_page(times: Times, options: argparse.Namespace) -> None:
    """Writes the section of docs/benchmarks.md that was measured, and its picture."""
    if options.processes == 1:
        draw(times, options, DOCS / "benchmarks.png")
        write_section(
            "An update step",
            f"""Written by `make bench`. All contenders start from the same weights, see the same batches and
run AdamW, a linear schedule and gradient clipping on one CPU thread; nothing is logged or saved. Times
are processor times, the medians over {options.rounds} processes in which they take {TURNS} turns, without
imports, set-up and the first steps. The last column is what a contender adds to the bare loop, divided by
what `transformers.Trainer` adds.

{versions()}

![Time per update step](benchmarks.png)

{tabulate(times, options)}""",
        )
    else:
        write_section(
            "Several processes",
            f"""Written by `make bench ARGS="--processes {options.processes}"`. The same, with
{options.processes} processes that torchrun has started, each on one CPU thread and with batches of its own;
gloo reduces the gradients. Times are those of the first process by the clock, since processes wait for one
another: the medians over {options.rounds} jobs in which they take {TURNS} turns.

{versions()}

{tabulate_distributed(times, options)}""",
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contender", nargs="+", choices=CONTENDERS, help="be the worker for these")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--model", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--accumulation", nargs="+", type=int, choices=ACCUMULATIONS, default=ACCUMULATIONS)
    parser.add_argument("--steps", type=int, help="at most so many update steps")
    parser.add_argument(
        "--processes", type=int, default=1, help="under torchrun, Hugging Face against compat"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, no page written")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.steps = 1, QUICK_STEPS
    if options.processes > 1:
        options.contenders = list(DISTRIBUTED)
    return options


def main() -> None:
    """Is the worker, or runs the workers and reports."""
    options = parse()
    if options.contender:
        run_worker(options)
        return
    times = measure(options)
    print((tabulate if options.processes == 1 else tabulate_distributed)(times, options))
    everyone = CONTENDERS if options.processes == 1 else DISTRIBUTED
    whole = len(times) == len(everyone) * len(CELLS)
    if whole and not options.quick:
        write_page(times, options)


if __name__ == "__main__":
    main()
