"""A `checkpoint-N` folder whose weights and optimizer accelerate saved in shards, with FSDP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.checkpoint.convert import dcp, folders
from compat.checkpoint.convert.common import Checkpoint
from compat.checkpoint.convert.optimizer import named, numbered
from compat.checkpoint.convert.skeleton import as_in_memory, saved_once, skeleton_of
from compat.checkpoint.manifest import seal
from compat.checkpoint.shards import METADATA

if TYPE_CHECKING:
    from pathlib import Path

    from compat.checkpoint.convert.common import Options

MODEL, OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"
"""The folders and keys that accelerate uses for them."""


def is_sharded(path: Path) -> bool:
    """Whether a folder is such a checkpoint, or the weights folder in one."""
    return (root_of(path) / MODEL / METADATA).is_file()


def read(folder: Path, options: Options) -> Checkpoint:
    """Read it, with its tensors assembled."""
    root = root_of(folder)
    checkpoint = Checkpoint(root, dcp.read(root / MODEL)["model"])
    folders.read_beside(checkpoint, root, options, root.parent)
    if (root / OPTIMIZER / METADATA).is_file():
        state = dcp.read(root / OPTIMIZER)["optimizer"]
        checkpoint.optimizer, checkpoint.parameters = numbered(state)
    if not checkpoint.has_adapters:
        checkpoint.weights = saved_once(checkpoint.weights, skeleton_of(checkpoint))
    return checkpoint


def write(checkpoint: Checkpoint, folder: Path, options: Options) -> None:
    """Write it as a single process would."""
    folders.require_state(checkpoint)
    skeleton = skeleton_of(checkpoint)
    weights = as_in_memory(checkpoint, skeleton, "sharded")
    optimizer = None if checkpoint.optimizer is None else named(checkpoint, skeleton)
    folder.mkdir()
    dcp.write({"model": weights}, folder / MODEL)
    if optimizer is not None:
        dcp.write({"optimizer": optimizer}, folder / OPTIMIZER)
    folders.write_beside(checkpoint, folder)
    seal(folder)


def root_of(path: Path) -> Path:
    """Return the `checkpoint-N` folder; the weights folder in it may be passed as well."""
    return path.parent if path.name == MODEL else path
