"""Measures how long saving blocks training: Hugging Face, `compat`, and `compat` with `save_async`.

``saving.py`` lets the contenders take turns for several rounds, each time in a process of its own, and writes
the medians to docs/saving.md. ``saving.py --contender NAME`` is such a process.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

import compat

CONTENDERS = {
    "hf": ("transformers.Trainer", transformers, {}),
    "blocking": ("compat.Trainer", compat, {}),
    "async": ("compat.Trainer, save_async", compat, {"lightning": {"save_async": True}}),
}
"""Name → what the page calls it, where its classes are from, and its arguments."""

SIZES = {
    "tiny": {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 64},
    "gpt2-45m": {"n_layer": 8, "n_embd": 640, "n_head": 10, "vocab_size": 8192},
}
STEPS, EVERY, LENGTH = 12, 3, 32
PAGE = Path(__file__).parents[2] / "docs" / "saving.md"


def work(contender: str, size: str) -> dict[str, Any]:
    """Trains with a save every few steps.

    Returns:
        Milliseconds that each save has held training up, seconds of the whole run, bytes of a checkpoint.
    """
    _, library, options = CONTENDERS[contender]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SIZES[size], n_positions=LENGTH)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (STEPS, LENGTH))]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        args = library.TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=1,
            save_strategy="steps",
            save_steps=EVERY,
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **options,
        )
        trainer = library.Trainer(transformers.GPT2LMHeadModel(config), args, train_dataset=data)
        pauses, save = [], trainer._save_checkpoint

        def timed(*args: Any, **kwargs: Any) -> None:
            begin = time.perf_counter()
            save(*args, **kwargs)
            pauses.append((time.perf_counter() - begin) * 1e3)

        trainer._save_checkpoint = timed
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
        last = Path(folder, f"checkpoint-{STEPS}")
        written = sum(file.stat().st_size for file in last.iterdir())
    return {"contender": contender, "pauses": pauses, "seconds": seconds, "bytes": written}


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Lets the contenders take turns."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name in CONTENDERS:
            print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
            command = [sys.executable, __file__, "--contender", name, "--size", options.size]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    return runs


def tabulate(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the results as a Markdown table."""
    rows = ["| contender | pause per save, HF = 1 | whole run, HF = 1 |", "|---|---:|---:|"]
    pauses = {name: median(p for run in found for p in run["pauses"]) for name, found in runs.items()}
    seconds = {name: median(run["seconds"] for run in found) for name, found in runs.items()}
    for name, (title, _, _) in CONTENDERS.items():
        rows.append(f"| {title} | {pauses[name] / pauses['hf']:.2f} | {seconds[name] / seconds['hf']:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Is the worker, or runs the workers and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contender", choices=CONTENDERS, help="be the worker for this one")
    parser.add_argument("--size", choices=SIZES, default="gpt2-45m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, no page written")
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(work(options.contender, options.size)))
        return
    options.rounds = 1 if options.quick else options.rounds
    runs = measure(options)
    print(tabulate(runs))
    if options.quick:
        return
    packages = ["torch", "transformers", "lightning"]
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in packages)
    size = runs["hf"][0]["bytes"] / 1e6
    PAGE.write_text(
        f"""# How long saving blocks training

Written by `make bench-saving`. All contenders train the same GPT-2 on one thread and save {STEPS // EVERY}
times, {size:,.0f} MB each, on the disk of the folder they are started in. A pause is the time within one
save, the median of {options.rounds} processes each; the whole run has the wait for the last save in it.

What `compat` does beside writing: each file is flushed to the disk and has its digest taken before the
checkpoint appears. With `lightning={{"save_async": True}}` training goes on while that is done, and while a
copy of the optimizer's state is written.

Python {platform.python_version()}, {versions}.

{tabulate(runs)}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
