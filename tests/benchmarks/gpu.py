"""Compares training on an accelerator: Hugging Face, plain Lightning and `compat`, in tokens per second.

``gpu.py`` lets the contenders take turns for several rounds, each time in a process of its own, and prints a
table of medians. It needs a GPU and nothing else: the model is a GPT-2 of 110 million parameters made from a
configuration, in bf16, and its text is random. ``gpu.py --tiny`` shows on a CPU that the script works.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from transformers import GPT2Config, GPT2LMHeadModel

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP = 5
LEARNING_RATE = 1e-4
CLIP = 1.0


@dataclass(frozen=True)
class Size:
    """How much is trained: `batch` texts of `length` tokens in each of `steps` update steps."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    length: int
    batch: int
    steps: int


SIZES = {
    "full": Size(width=768, layers=12, heads=12, vocabulary=32768, length=1024, batch=8, steps=60),
    "tiny": Size(width=32, layers=2, heads=2, vocabulary=128, length=16, batch=2, steps=8),
}


class Timed(GPT2LMHeadModel):
    """A GPT-2 that notes when its first measured forward pass and its last one begin."""

    def __init__(self, size: Size) -> None:
        super().__init__(
            GPT2Config(
                vocab_size=size.vocabulary,
                n_positions=size.length,
                n_embd=size.width,
                n_layer=size.layers,
                n_head=size.heads,
                bos_token_id=0,
                eos_token_id=0,
                # Trainers seed themselves at different moments, and dropout would tell.
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
        self.passes, self.marks = 0, {WARM_UP: 0.0, size.steps - 1: 0.0}
        self.final_loss = torch.zeros(())

    def forward(self, *args: object, **kwargs: object) -> object:
        if self.passes in self.marks:
            # The device works behind Python's back; it is waited for twice in a run.
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks[self.passes] = time.perf_counter()
        self.passes += 1
        output = super().forward(*args, **kwargs)
        self.final_loss = output.loss.detach()
        return output


class Text(torch.utils.data.Dataset):
    """Random tokens, the same for every contender."""

    def __init__(self, size: Size) -> None:
        shape = (size.batch * size.steps, size.length)
        self.tokens = torch.randint(size.vocabulary, shape, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def train_hf(model: Timed, size: Size, folder: str, package: str = "transformers") -> None:
    """Trains with the Trainer of `transformers`, or of another package with the same face."""
    module = __import__(package)

    class InOrder(module.Trainer):
        def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = module.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=size.batch,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        max_grad_norm=CLIP,
        optim="adamw_torch",
        bf16=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    InOrder(model=model, args=arguments, train_dataset=Text(size)).train()


def train_compat(model: Timed, size: Size, folder: str) -> None:
    """Trains with our Trainer: the same code, another import."""
    train_hf(model, size, folder, "compat")


def train_lightning(model: Timed, size: Size, folder: str) -> None:
    """Trains a LightningModule as its author would write it, with nothing around it."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=0.0)

    lightning.Trainer(
        default_root_dir=folder,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=1,
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(
        Module(),
        torch.utils.data.DataLoader(Text(size), size.batch, pin_memory=torch.cuda.is_available()),
    )


CONTENDERS: dict[str, tuple[str, Callable[[Timed, Size, str], None]]] = {
    "hf": ("transformers.Trainer", train_hf),
    "lightning": ("Lightning Trainer", train_lightning),
    "compat": ("compat.Trainer", train_compat),
}


def peak_memory() -> int:
    """Returns the most bytes that were in use: of the GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work(contender: str, size: Size) -> dict[str, object]:
    """Trains once and returns tokens per second, the peak of memory in MiB and the last loss."""
    torch.manual_seed(0)
    model = Timed(size).train()
    with tempfile.TemporaryDirectory() as folder:
        CONTENDERS[contender][1](model, size, folder)
    first, last = model.marks.values()
    tokens = (size.steps - 1 - WARM_UP) * size.batch * size.length
    return {
        "contender": contender,
        "steps": model.passes,
        "speed": tokens / (last - first),
        "memory": peak_memory() / 2**20,
        "loss": model.final_loss.item(),
    }


def start_worker(contender: str, options: argparse.Namespace) -> dict:
    """Runs one contender in a new process and returns its result."""
    command = [sys.executable, __file__, "--contender", contender, *(["--tiny"] if options.tiny else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"contender"')))


def tabulate(results: list[dict]) -> str:
    """Returns the medians of all rounds as a Markdown table."""
    rows = [
        "| contender | tokens per second | transformers = 1 | peak memory, MiB | last loss |",
        "|---|---:|---:|---:|---:|",
    ]
    names = [name for name in CONTENDERS if any(result["contender"] == name for result in results)]
    middle = {
        name: {
            key: median(result[key] for result in results if result["contender"] == name)
            for key in ("speed", "memory", "loss")
        }
        for name in names
    }
    for name, found in middle.items():
        ratio = f"{found['speed'] / middle['hf']['speed']:.3f}" if "hf" in middle else ""
        rows.append(
            f"| {CONTENDERS[name][0]} | {found['speed']:,.0f} | {ratio} "
            f"| {found['memory']:,.0f} | {found['loss']:.4f} |"
        )
    return "\n".join(rows)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contender", choices=CONTENDERS, help="be the worker for this one")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a size at which a CPU does")
    return parser.parse_args(arguments)


def main() -> None:
    """Is the worker, or runs the workers and reports."""
    options = parse()
    size = SIZES["tiny" if options.tiny else "full"]
    if options.contender:
        print(json.dumps(work(options.contender, size)), flush=True)
        return
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("gpu.py: no GPU here. Give --tiny to see that the script works.")
    results = []
    for number in range(options.rounds):
        for contender in options.contenders:
            print(f"round {number + 1} of {options.rounds}: {contender}", file=sys.stderr)
            results.append(start_worker(contender, options))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}\n\n{tabulate(results)}")


if __name__ == "__main__":
    main()
