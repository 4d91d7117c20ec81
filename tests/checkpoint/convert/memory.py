"""Converts a checkpoint of many tensors to every form and back, and prints how much memory each takes.

Run as a script with an empty folder: `form form growth` in bytes on each line, and the largest tensor first.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from compat.checkpoint.convert import convert
from tests.checkpoint.convert.made import zero

WIDTH, LAYERS = 512, 3
PAIRS = (
    ("hf", "lightning"),
    ("hf", "sharded"),
    ("hf", "pretrained"),
    ("lightning", "hf"),
    ("lightning", "pretrained"),
    ("sharded", "lightning"),
    ("sharded", "hf"),
    ("pickles", "pretrained"),
    ("deepspeed", "pretrained"),
)


def make(folder: Path, width: int, layers: int) -> None:
    """Write a checkpoint of `hf`'s, and its weights as pickles and as DeepSpeed would."""
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 4, "vocab_size": 64, "n_positions": 64}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config)
    (folder / "hf").mkdir(parents=True)
    (folder / "pickles").mkdir()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    config.architectures = ["GPT2LMHeadModel"]
    for kind in ("hf", "pickles"):
        config.save_pretrained(folder / kind)
    save_file(state, folder / "hf" / "model.safetensors", {"format": "pt"})
    torch.save(state, folder / "pickles" / "pytorch_model.bin")
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim == 1]},
        ]
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "hf" / "optimizer.pt")
    zero(folder / "deepspeed", state, stage=3)
    config.save_pretrained(folder / "deepspeed")
    (folder / "hf" / "trainer_state.json").write_text('{"global_step": 1, "epoch": 0.5}')


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak(folder: Path, source: str, target: str, pipe: multiprocessing.connection.Connection) -> None:
    # What libraries need is there after a small conversion.
    for size in ("small", "large"):
        before = resident()
        convert(folder / size / source, folder / size / "to" / f"{source}-{target}", to=target)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def main(folder: Path) -> None:
    """A process of its own for each conversion has a peak of its own."""
    context = multiprocessing.get_context("fork")
    for size, sizes in (("small", (32, 1)), ("large", (WIDTH, LAYERS))):
        maker = context.Process(target=make, args=(folder / size, *sizes))
        maker.start()
        maker.join()
    print("largest", 4 * WIDTH * WIDTH * torch.float32.itemsize)
    for source, target in PAIRS:
        ours, theirs = context.Pipe()
        process = context.Process(target=peak, args=(folder, source, target, theirs))
        process.start()
        growth = ours.recv()
        process.join()
        print(source, target, growth)
        for size in ("small", "large"):
            made = folder / size / "to" / f"{source}-{target}"
            if (folder / size / target).exists():
                shutil.rmtree(made) if made.is_dir() else made.unlink()
            else:
                made.rename(folder / size / target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
