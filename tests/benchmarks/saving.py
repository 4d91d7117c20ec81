"""Measures how long saving blocks training: Hugging Face, also flushed, `compat`, also with `save_async`.

``saving.py`` lets the contenders take turns for several rounds, each time in a process of its own, and writes
the medians to docs/saving.md. ``saving.py --contender NAME`` is such a process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
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
    "flushed": ("transformers.Trainer, each file then flushed to the disk", transformers, {}),
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
        Milliseconds that each save has held training up, seconds of the whole run, bytes of a checkpoint, and
        bytes that the saves have added to the largest memory of the process.
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
        pauses, memory, save = [], [], trainer._save_checkpoint

        def timed(*args: Any, **kwargs: Any) -> None:
            memory.append(largest_memory())
            begin = time.perf_counter()
            save(*args, **kwargs)
            if contender == "flushed":
                flush(Path(folder, f"checkpoint-{trainer.state.global_step}"))
            pauses.append((time.perf_counter() - begin) * 1e3)

        trainer._save_checkpoint = timed
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
        last = Path(folder, f"checkpoint-{STEPS}")
        written = sum(file.stat().st_size for file in last.iterdir())
    return {
        "contender": contender,
        "pauses": pauses,
        "seconds": seconds,
        "bytes": written,
        "memory": largest_memory() - memory[0],
    }


def largest_memory() -> int:
    """Returns the largest resident memory that the process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def flush(folder: Path) -> None:
    """Flushes each file of a folder, and the folder."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


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
    rows = ["| contender | pause per save | whole run | memory added |", "|---|---:|---:|---:|"]
    figures = {
        name: (
            median(pause for run in found for pause in run["pauses"]),
            median(run["seconds"] for run in found),
        )
        for name, found in runs.items()
    }
    for name, (title, _, _) in CONTENDERS.items():
        ratios = (own / of_hf for own, of_hf in zip(figures[name], figures["hf"], strict=True))
        added = median(run["memory"] / run["bytes"] for run in runs[name])
        rows.append(f"| {title} | {' | '.join(f'{ratio:.2f}' for ratio in (*ratios, added))} |")
    return "\n".join(rows)


def main() -> None:
    """Is the worker, or runs the workers and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contender", choices=CONTENDERS, help="be the worker for this one")
    parser.add_argument("--size", choices=SIZES, default="gpt2-45m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="say so of the machine on the page")
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
    busy = " The machine did other work at the same time." if options.busy else ""
    PAGE.write_text(
        f"""# How long saving blocks training

Written by `make bench-saving`. All contenders train the same GPT-2 on one thread and save {STEPS // EVERY}
times, {size:,.0f} MB each, on the disk of the folder they are started in. A pause is the time within one
save, the median of {options.rounds} processes each, which take turns; the whole run has the wait for the last
save in it. Both are ratios to `transformers.Trainer`. The memory is what the saves add to the largest memory
of the process, as a ratio to the bytes of a checkpoint.{busy}

{tabulate(runs)}

HF's pause ends when the files are in the page cache, from where a crash of the machine loses them. `compat`
flushes each file to the disk and takes its digest before the checkpoint appears. The second line is HF's
pause with a flush of each file, and without digests.

Where the time of a save goes:

- Most of HF's pause is the kernel's: it allocates new pages for what is written. `compat` flushes
  `optimizer.pt` while it is written, takes its digest from the same pages, and gives the pages back, which
  are used for the rest of the file. `model.safetensors` is flushed while `optimizer.pt` is written. What
  remains at the end is the last part of both. This uses a second core. On a slow disk the flush is the
  floor of a save whose files are to survive a crash.
- With `lightning={{"save_async": True}}` the pause is a copy of weights and states, into memory that is kept
  between saves, and the small files. Serialization, digests, flushes and rotation are the work of another
  thread. The copy takes as much memory as the checkpoint has bytes. If a save begins before the last one is
  written, it waits for it.

Python {platform.python_version()}, {versions}.
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
