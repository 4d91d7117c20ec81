"""Types and functions shared by all forms of checkpoints during a conversion."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from compat.checkpoint.convert import lazy
from compat.checkpoint.layout import leaves_folder
from compat.checkpoint.manifest import MANIFEST
from compat.checkpoint.shapes import wrong_in_json
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG, ADAPTER_CONFIG, STATE = "config.json", "adapter_config.json", "trainer_state.json"

TRAINING_ONLY = re.compile(
    r"""(trainer_state\.json | training_args\.bin | rng_state[^/]* | data_state[^/]*
    | lightning_callbacks\.pth
    | scheduler\.pt | scaler\.pt | optimizer\.(pt|bin) | latest(_universal)? | zero_to_(fp32|torch)\.py
    | checkpoint-is-incomplete\.txt)""",
    re.VERBOSE,
)
"""Files that only a resumed training reads."""


@dataclass(frozen=True)
class Options:
    """The options of a conversion.

    Attributes:
        max_shard_size: the maximum size of a weights file, as `save_pretrained` takes it.
        dtype: the type of floating-point weights in a `from_pretrained` folder; unchanged if None.
        config: a config.json, or a folder that has one, if the checkpoint has none.
        prefix: the prefix of the model's names in a Lightning checkpoint; detected if None.
    """

    max_shard_size: str | int = "5GB"
    dtype: torch.dtype | None = None
    config: Path | None = None
    prefix: str | None = None


@dataclass
class Checkpoint:
    """A checkpoint of any form; its tensors may be lazy.

    Attributes:
        source: its path.
        weights: name as `save_pretrained` writes it → tensor; tied weights once.
        optimizer: its state in the format of `torch.optim.Optimizer.state_dict`; parameters are numbers.
        scheduler: the state of the scheduler.
        scaler: the state of the gradient scaler.
        files: path within a `checkpoint-N` folder → content as uint8, for all other files.
        parameters: names of the optimizer's parameters in the order of their numbers, if known.
        notes: remarks for the user, printed with the result.
        base: content of the configuration of the adapters' base model, if known.
    """

    source: Path
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any] | None = None
    scheduler: Any = None
    scaler: Any = None
    files: dict[str, torch.Tensor] = field(default_factory=dict)
    parameters: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    base: torch.Tensor | None = None

    @property
    def has_adapters(self) -> bool:
        """Whether the weights are those of adapters, without those of the base model."""
        return ADAPTER_CONFIG in self.files

    def told(self, name: str) -> dict[str, Any]:
        """Read a small JSON file; empty if it does not exist."""
        return self._json(self.files.get(name), name)

    def config(self) -> dict[str, Any]:
        """Return the configuration of the model, or of its adapters' base model; empty if unknown."""
        return self._json(self.base, CONFIG) if self.has_adapters else self.told(CONFIG)

    def _json(self, content: torch.Tensor | None, name: str) -> dict[str, Any]:
        if content is None:
            return {}
        text = bytes(lazy.filled(content).numpy()).decode("utf-8", "replace")
        if wrong := wrong_in_json(name, text):
            msg = f"`{self.source}`: {name}: {wrong}. Copy it again, whole, or give another checkpoint."
            raise CheckpointError(msg)
        found: dict[str, Any] = json.loads(text)
        return found

    def size(self) -> int:
        """Return the bytes of all tensors and files."""
        parts = (self.weights, self.optimizer, self.scheduler, self.scaler, self.files)
        return sum(lazy.nbytes(tensor) for part in parts for tensor in tensors_of(part))


def tensors_of(tree: object) -> Iterator[torch.Tensor]:
    """Yield all tensors in dicts, lists and tuples."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors_of(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors_of(item)


def content(path: str | Path) -> torch.Tensor:
    """Return a file as a lazy uint8 tensor of shape (bytes,)."""
    return lazy.declared((os.path.getsize(path),), torch.uint8, lazy.FileRange(str(path), 0))


def files_in(folder: Path, *leave_out: str) -> dict[str, torch.Tensor]:
    """Return every file of a folder except a manifest, by its path within the folder.

    Args:
        folder: the folder.
        leave_out: regular expressions of paths to omit, or of the beginning of paths.
    """
    unwanted = re.compile("|".join([re.escape(MANIFEST), *leave_out]))
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not unwanted.fullmatch(name) and not unwanted.fullmatch(name.partition("/")[0]):
            found[name] = content(path)
    return found


def within(folder: Path, name: str, where: str | Path) -> Path:
    """Return the path of a file that a checkpoint names.

    Args:
        folder: the checkpoint.
        name: the name in the checkpoint.
        where: the file that contains the name.

    Raises:
        CheckpointError: the name points outside of the folder.
    """
    if leaves_folder(name):
        msg = f"`{where}`: it names `{name}`, which leads out of the checkpoint. Don't use it as it is."
        raise CheckpointError(msg)
    return folder / name.replace("\\", "/")
