"""Lightning checkpoints: one file, or a folder of shards."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

from compat.checkpoint.convert import dcp, lazy, torchfile
from compat.checkpoint.convert.common import Checkpoint
from compat.checkpoint.convert.config import add_config
from compat.checkpoint.convert.names import live, prefix_of, saved
from compat.checkpoint.convert.optimizer import NO_GROUPS, OPTIMIZERS, SCHEDULERS, numbered
from compat.checkpoint.convert.progress import progress
from compat.checkpoint.convert.skeleton import as_in_memory, saved_once, skeleton_of
from compat.checkpoint.io import load_plain
from compat.checkpoint.layout import OPTIMIZER_EXTRA
from compat.checkpoint.shards import METADATA
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from compat.checkpoint.convert.common import Options

PREFIX = "model."
"""The prefix of the names of a model that a LightningModule holds as `self.model`."""

FILES = "hf_files"
"""The key of the other files of a `checkpoint-N` folder: path → bytes as uint8."""

META = "meta.pt"
"""The file in which Lightning keeps everything except weights and optimizers of a sharded checkpoint."""

EXTRA = "optimizer_extra"
"""The key of the values that an optimizer keeps outside of its state, as saved by `HFModule`."""

MANUAL = "epoch_loop.manual_optimization.optim_step_progress"
"""The entry of Lightning's fit loop that counts the steps of manual optimization."""

SCALER = "MixedPrecision"
"""The key under which Lightning keeps the scaler: the name of its plugin."""


def is_file(path: Path) -> bool:
    """Whether a path is a file that may be a checkpoint."""
    return path.is_file()


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of shards, as written by `ModelParallelStrategy`."""
    return (path / META).is_file() and (path / METADATA).is_file()


def read_file(path: Path, options: Options) -> Checkpoint:
    """Read a `.ckpt` file."""
    tree = torchfile.read(path)
    if not isinstance(tree, dict) or "state_dict" not in tree:
        msg = f"`{path}`: not a checkpoint of Lightning's (it has no `state_dict`). Give one, or a folder."
        raise CheckpointError(msg)
    return _read(path, tree, tree.get("optimizer_states") or [], options)


def read_folder(path: Path, options: Options) -> Checkpoint:
    """Read a folder of shards, with its tensors assembled."""
    shards = dcp.read(path)
    tree = {**torchfile.read(path / META), "state_dict": shards["state_dict"]}
    states = [state for key, state in sorted(shards.items()) if key.startswith("optimizer_")]
    return _read(path, tree, states, options)


def _read(path: Path, tree: Mapping[str, Any], optimizers: list[Any], options: Options) -> Checkpoint:
    checkpoint = Checkpoint(path, {}, scaler=tree.get(SCALER), files=dict(tree.get(FILES, {})))
    add_config(checkpoint, options, path.parent, names=tree["state_dict"])
    skeleton = None if checkpoint.has_adapters else skeleton_of(checkpoint)
    names = {name: name.replace("_orig_mod.", "") for name in tree["state_dict"]}
    told = PREFIX if options.prefix is None and FILES in tree else options.prefix
    prefix = prefix_of(path, list(names.values()), skeleton, told)
    of_model = {
        names[key].removeprefix(prefix): tensor
        for key, tensor in tree["state_dict"].items()
        if names[key].startswith(prefix) and isinstance(tensor, torch.Tensor)
    }
    if EXTRA in tree:
        checkpoint.files[OPTIMIZER_EXTRA] = _content(tree[EXTRA])
    if len(of_model) < len(names):
        checkpoint.notes.append(f"{len(names) - len(of_model)} tensors outside of `{prefix}` left out")
    checkpoint.weights = saved(of_model) if checkpoint.has_adapters else saved_once(of_model, skeleton)
    schedules = tree.get("lr_schedulers") or []
    if _steps_of_manual(tree):
        checkpoint.optimizer = {**NO_GROUPS, OPTIMIZERS: optimizers}
        checkpoint.scheduler = {SCHEDULERS: schedules}
    elif len(optimizers) > 1 or len(schedules) > 1:
        checkpoint.notes.append("the states of several optimizers left out")
    elif optimizers:
        checkpoint.optimizer, named = numbered(optimizers[0])
        checkpoint.parameters = named and [
            name.replace("_orig_mod.", "").removeprefix(prefix) for name in named
        ]
        checkpoint.scheduler = schedules[0] if schedules else None
    return checkpoint


def _steps_of_manual(tree: Mapping[str, Any]) -> int:
    """Return the optimizer steps of manual optimization; 0 where Lightning stepped by itself."""
    progress = tree.get("loops", {}).get("fit_loop", {}).get(MANUAL, {})
    return int(progress.get("total", {}).get("completed", 0))


def _steps_saved(checkpoint: Checkpoint) -> int:
    """Return the optimizer steps of manual optimization, from the file in which our Trainer saves them."""
    content = checkpoint.files.get(OPTIMIZER_EXTRA)
    if content is None:
        return 0
    saved = load_plain(io.BytesIO(lazy.filled(content).numpy().tobytes()))
    return int(saved.get("attributes", {}).get("steps", 0))


def _states(state: dict[str, Any] | None, several: str) -> list[Any]:
    """Return a state, or the several that it holds, as Lightning lists them."""
    return [] if state is None else state.get(several, [state])


def _content(tree: Any) -> torch.Tensor:
    """Return the bytes of a torch file that holds `tree`, as uint8."""
    file = io.BytesIO()
    torch.save(tree_map(lambda leaf: lazy.filled(leaf) if lazy.is_lazy(leaf) else leaf, tree), file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def write(checkpoint: Checkpoint, path: Path, options: Options) -> None:
    """Write a `.ckpt` file that Lightning can load with `weights_only=True`."""
    import importlib.metadata

    weights = (
        live(checkpoint.weights)
        if checkpoint.has_adapters
        else as_in_memory(checkpoint, skeleton_of(checkpoint), "lightning")
    )
    told = progress(checkpoint)
    manual = _steps_saved(checkpoint) if OPTIMIZERS in (checkpoint.optimizer or {}) else 0
    tree: dict[str, Any] = {
        "epoch": told.epoch,
        "global_step": manual or told.steps,
        "pytorch-lightning_version": importlib.metadata.version("lightning"),
        "state_dict": {f"{PREFIX}{name}": tensor for name, tensor in weights.items()},
        "loops": told.loops(manual),
        "callbacks": {},
        "optimizer_states": _states(checkpoint.optimizer, OPTIMIZERS),
        "lr_schedulers": _states(checkpoint.scheduler, SCHEDULERS),
    }
    if checkpoint.scaler is not None:
        tree[SCALER] = checkpoint.scaler
    if checkpoint.files:
        tree[FILES] = checkpoint.files
    torchfile.write(tree, path)
