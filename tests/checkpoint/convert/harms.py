"""Checkpoints of every form that is read, and what may happen to one on a disk.

`python -m tests.checkpoint.convert.harms 2000` harms each of them so many times, at random.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from compat.checkpoint.convert import convert, dcp
from compat.checkpoint.manifest import MANIFEST, seal
from compat.errors import CheckpointError
from tests.checkpoint.convert import made

if TYPE_CHECKING:
    from collections.abc import Callable

STATE = json.dumps({"global_step": 7, "epoch": 1.0, "max_steps": 9})


def model(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in {"a": (8, 5), "b": (7,)}.items()}


def optimizer(seed: int = 0) -> dict[str, Any]:
    """The state of an optimizer of these weights."""
    moments = model(seed + 100).values()
    state = {at: {"step": torch.tensor(7.0), "exp_avg": moment} for at, moment in enumerate(moments)}
    return {"state": state, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]}


def beside(folder: Path, seed: int) -> None:
    """Write what every `checkpoint-N` folder has beside weights and optimizer."""
    (folder / "trainer_state.json").write_text(STATE)
    (folder / "config.json").write_text(json.dumps({"hidden_size": seed}))
    torch.save({"last_epoch": 7}, folder / "scheduler.pt")
    torch.save({"torch": torch.arange(seed, seed + 9)}, folder / "rng_state.pth")


def hf(folder: Path, seed: int) -> Path:
    """A sealed folder of safetensors."""
    folder.mkdir(parents=True)
    save_file(model(seed), folder / "model.safetensors")
    torch.save(optimizer(seed), folder / "optimizer.pt")
    beside(folder, seed)
    seal(folder)
    return folder


def pickled(folder: Path, seed: int) -> Path:
    """A folder of HF's own, whose index names pickles as it likes; without a manifest."""
    folder.mkdir(parents=True)
    for name, tensor in model(seed).items():
        torch.save({name: tensor}, folder / f"part {name}.bin")
    index = {"metadata": {}, "weight_map": {name: f"part {name}.bin" for name in model(seed)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save(optimizer(seed), folder / "optimizer.pt")
    beside(folder, seed)
    return folder


def lightning(folder: Path, seed: int) -> Path:
    """A file of Lightning's."""
    hf(folder / "checkpoint-7", seed)
    convert(folder / "checkpoint-7", folder / "x.ckpt")
    return folder / "x.ckpt"


def sharded(folder: Path, seed: int) -> Path:
    """Shards of FSDP, sealed."""
    unsealed(folder, seed)
    seal(folder)
    return folder


def unsealed(folder: Path, seed: int) -> Path:
    """Shards of FSDP, without a manifest."""
    folder.mkdir(parents=True)
    dcp.write({"model": model(seed)}, folder / "pytorch_model_fsdp_0")
    beside(folder, seed)
    return folder


def folder_of_lightnings(folder: Path, seed: int) -> Path:
    """Shards of Lightning's."""
    folder.mkdir(parents=True)
    dcp.write({"state_dict": {f"model.{name}": tensor for name, tensor in model(seed).items()}}, folder)
    torch.save({"epoch": 0, "global_step": 7, "lr_schedulers": []}, folder / "meta.pt")
    return folder


def zero(stage: int) -> Callable[[Path, int], Path]:
    """Parts of DeepSpeed's."""

    def make(folder: Path, seed: int) -> Path:
        made.zero(folder, model(seed), stage)
        beside(folder, seed)
        return folder

    return make


FORMS: dict[str, tuple[Callable[[Path, int], Path], tuple[str, ...]]] = {
    "hf": (hf, ("*",)),
    "pickled": (pickled, ("*.bin", "*.pt", "*.pth")),
    "lightning": (lightning, ("*",)),
    "sharded": (sharded, ("*",)),
    "unsealed": (unsealed, ("*.distcp", "*.pt", "*.pth")),
    "folder of lightning's": (folder_of_lightnings, ("*.distcp", "*.pt")),
    "zero 2": (zero(2), ("*.pt", "*.pth")),
    "zero 3": (zero(3), ("*.pt", "*.pth")),
}
"""Name → what makes one, and the files in which nothing may go unnoticed: those that have checksums."""


def flip(file: Path, place: float, _: Path) -> None:
    """Flip a bit at some share of a file."""
    content = bytearray(file.read_bytes())
    bit = int(place * len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def cut(file: Path, place: float, _: Path) -> None:
    """Leave some share of a file."""
    file.write_bytes(file.read_bytes()[: int(place * file.stat().st_size)])


def remove(file: Path, _: float, __: Path) -> None:
    """Remove a file."""
    file.unlink()


def swap(file: Path, _: float, other: Path) -> None:
    """Put a file of another checkpoint into its place."""
    shutil.copyfile(other, file)


HARMS = (flip, cut, remove, swap)


def files_of(checkpoint: Path) -> list[Path]:
    """All files of a checkpoint."""
    if checkpoint.is_file():
        return [checkpoint]
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def outcome(checkpoint: Path, target: Path) -> Any:
    """What a conversion comes to: the tree that is in the file, or the error as text.

    Raises:
        Exception: anything but a `CheckpointError`.
    """
    try:
        convert(checkpoint, target, "lightning")
    except CheckpointError as error:
        assert not target.exists()
        return str(error)
    found = torch.load(target, weights_only=True)
    target.unlink()
    for name, content in found["hf_files"].items() if "hf_files" in found else ():
        if name.endswith((".bin", ".pt", ".pth")):
            # An archive has bytes that mean nothing.
            found["hf_files"][name] = torch.load(io.BytesIO(bytes(content.numpy())), weights_only=True)
    return found


def harmed(form: str, folder: Path, harm: Callable[..., None], name: str, place: float) -> str:
    """Harm a file of a checkpoint, and convert it.

    Args:
        form: one of `FORMS`.
        folder: holds one of that form as `whole`, and another one as `other`.
        harm: one of `HARMS`.
        name: of the file, within the checkpoint.
        place: a share of the file.

    Returns:
        What is wrong with the outcome; empty where nothing is.
    """
    make, noticed = FORMS[form]
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "whole", copy)
    checkpoint = next(path for path in (copy / "x.ckpt", copy) if path.exists())
    file = checkpoint / name if name else checkpoint
    harm(file, place, folder / "other" / file.relative_to(copy))
    expected = torch.load(folder / "expected", weights_only=True)
    found = outcome(checkpoint, folder / "out.ckpt")
    if isinstance(found, str):
        return "" if file.name in found or str(copy) in found else f"no file is named: {found}"
    # Without a manifest, nobody can tell that a file was never there, or is another one.
    counts = harm in (flip, cut) or "*" in noticed
    is_noticed = counts and any(file.match(pattern) for pattern in noticed) and file.name != MANIFEST
    if harm is swap and make is lightning:
        return ""
    return "it has gone unnoticed" if is_noticed and not made.same(found, expected) else ""


def prepare(form: str, folder: Path) -> list[str]:
    """Make the checkpoints of a form that `harmed` needs; gives the names of their files."""
    make, _ = FORMS[form]
    whole = make(folder / "whole", 1)
    make(folder / "other", 2)
    torch.save(outcome(whole, folder / "out.ckpt"), folder / "expected")
    assert isinstance(torch.load(folder / "expected", weights_only=True), dict)
    return ["" if path == whole else path.relative_to(whole).as_posix() for path in files_of(whole)]


def main(times: int) -> int:
    """Harm every form at random, and print what has gone wrong."""
    draw, wrong = random.Random(0), 0  # noqa: S311 (harm, and no secret)
    for form in FORMS:
        with tempfile.TemporaryDirectory() as place:
            folder, refused = Path(place), 0
            names = prepare(form, folder)
            for _ in range(times):
                harm, name, share = draw.choice((flip, flip, cut)), draw.choice(names), draw.random()
                try:
                    found = harmed(form, folder, harm, name, share)
                except Exception:  # noqa: BLE001 (all that is foreign counts)
                    found = traceback.format_exc()
                refused += not found
                if found:
                    wrong += 1
                    print(form, harm.__name__, name, share, found)
            print(f"{form}: {refused} of {times} as they should be")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1])), 1))
