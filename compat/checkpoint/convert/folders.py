"""HF's folders: `checkpoint-N`, which training resumes from, and folders that `from_pretrained` loads."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import torch

from compat.checkpoint.convert import torchfile, weights
from compat.checkpoint.convert.common import CONFIG, STATE, TRAINING_ONLY, Checkpoint, files_in
from compat.checkpoint.convert.config import add_config
from compat.checkpoint.convert.optimizer import numbered
from compat.checkpoint.layout import LAYOUT
from compat.checkpoint.manifest import seal
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from compat.checkpoint.convert.common import Options

PARTS = {part.key: (part.file, *part.older) for part in LAYOUT}
"""Part of a checkpoint → the names that its file may have, the current one first."""

IN_OTHER_FORMS = (
    r"pytorch_model_fsdp_\d+",
    r"optimizer_\d+",
    r"global_step\d+(_universal)?",
    r"latest(_universal)?",
    r"zero_to_(fp32|torch)\.py",
)
"""Folders and files of FSDP and DeepSpeed that replace the weights and optimizer files of a plain
checkpoint."""

_OWN_FILES = (
    weights.FILES,
    *(re.escape(name) for names in PARTS.values() for name in names),
    *IN_OTHER_FORMS,
)


def read(folder: Path, options: Options) -> Checkpoint:
    """Read a `checkpoint-N` folder of HF's Trainer, of one process or with FSDP's full state dicts."""
    checkpoint = Checkpoint(folder, weights.read(folder))
    read_beside(checkpoint, folder, options)
    parts = read_parts(folder)
    if parts.get("optimizer") is not None:
        checkpoint.optimizer, checkpoint.parameters = numbered(parts["optimizer"])
    return checkpoint


def read_beside(checkpoint: Checkpoint, folder: Path, options: Options, *places: Path) -> None:
    """Read everything except weights and optimizer from a `checkpoint-N` folder of any kind.

    Args:
        checkpoint: is added to.
        folder: the folder of the checkpoint.
        options: of the conversion.
        places: folders that may have a missing configuration.
    """
    parts = read_parts(folder, "lr_scheduler", "scaler")
    checkpoint.scheduler, checkpoint.scaler = parts.get("lr_scheduler"), parts.get("scaler")
    checkpoint.files = files_in(folder, *_OWN_FILES)
    add_config(checkpoint, options, *places)


def read_parts(folder: Path, *keys: str) -> dict[str, Any]:
    """Read the states that exist, for `keys` or for all keys of `LAYOUT`: key → state."""
    found: dict[str, Any] = {}
    for key, names in PARTS.items():
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is not None and (not keys or key in keys):
            found[key] = torchfile.read(file)
    return found


def read_pretrained(folder: Path, options: Options) -> Checkpoint:
    """Read a folder that `from_pretrained` loads."""
    checkpoint = Checkpoint(folder, weights.read(folder), files=files_in(folder, *_OWN_FILES))
    add_config(checkpoint, options)
    return checkpoint


def write(checkpoint: Checkpoint, folder: Path, options: Options) -> None:
    """Write a `checkpoint-N` folder.

    Raises:
        CheckpointError: the checkpoint has no Trainer state to write.
    """
    require_state(checkpoint)
    folder.mkdir()
    weights.write(checkpoint.weights, folder, stem(checkpoint), options)
    write_beside(checkpoint, folder)
    if checkpoint.optimizer is not None:
        torchfile.write(checkpoint.optimizer, folder / PARTS["optimizer"][0])
    else:
        checkpoint.notes.append("no state of an optimizer")
    seal(folder)


def write_beside(checkpoint: Checkpoint, folder: Path) -> None:
    """Write everything except weights and optimizer."""
    weights.write_files(checkpoint.files, folder, checkpoint.source)
    for key, state in (("lr_scheduler", checkpoint.scheduler), ("scaler", checkpoint.scaler)):
        if state is not None:
            torchfile.write(state, folder / PARTS[key][0])


def write_pretrained(checkpoint: Checkpoint, folder: Path, options: Options) -> None:
    """Write a folder for `from_pretrained`.

    Raises:
        CheckpointError: the checkpoint has no configuration to write.
    """
    if CONFIG not in checkpoint.files and not checkpoint.has_adapters:
        msg = (
            f"`{checkpoint.source}`: no {CONFIG} was found in it or beside it, and `from_pretrained` needs "
            "one. Give it as `--config PATH`."
        )
        raise CheckpointError(msg)
    folder.mkdir()
    weights.write(checkpoint.weights, folder, stem(checkpoint), options)
    kept = {name: file for name, file in checkpoint.files.items() if not TRAINING_ONLY.fullmatch(name)}
    if options.dtype is not None and CONFIG in kept:
        kept[CONFIG] = _with_type(checkpoint.told(CONFIG), options.dtype)
    weights.write_files(kept, folder, checkpoint.source)


def _with_type(config: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    """Return a configuration that states the type of the weights, under the key that it uses for that."""
    name = str(dtype).removeprefix("torch.")
    named = {key: name for key in ("dtype", "torch_dtype") if key in config} or {"torch_dtype": name}
    text = json.dumps({**config, **named}, indent=2, sort_keys=True) + "\n"
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def require_state(checkpoint: Checkpoint) -> None:
    """Refuse to write a checkpoint that no Trainer could resume from.

    Raises:
        CheckpointError: the checkpoint has no `trainer_state.json`.
    """
    if STATE not in checkpoint.files:
        msg = (
            f"`{checkpoint.source}`: no HF Trainer has written it (it has no {STATE}), and none could resume "
            "from it. Convert it `--to pretrained`, and train the model that is loaded from there."
        )
        raise CheckpointError(msg)


def stem(checkpoint: Checkpoint) -> str:
    """Return the name of the weights file, without its extension."""
    return "adapter_model" if checkpoint.has_adapters else "model"
