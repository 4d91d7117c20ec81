"""What all forms of a checkpoint have in common while one is turned into another."""

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
"""Files that nothing but a resumed training reads."""


@dataclass(frozen=True)
class Options:
    """What a conversion was asked for.

    Attributes:
        max_shard_size: of a file of weights, as `save_pretrained` takes it.
        dtype: what floating-point weights become in a `from_pretrained` folder, if not what they are.
        config: a config.json, or a folder that has one, where the checkpoint has none.
        prefix: what stands before the names of the model in a Lightning checkpoint, if it is to be told.
    """

    max_shard_size: str | int = "5GB"
    dtype: torch.dtype | None = None
    config: Path | None = None
    prefix: str | None = None


@dataclass
class Checkpoint:
    """A checkpoint of any form; its tensors may be lazy ones.

    Attributes:
        source: where it lies.
        weights: name as `save_pretrained` writes it → tensor; what is tied, once.
        optimizer: its state as `torch.optim.Optimizer.state_dict` gives it; parameters are numbers.
        scheduler: the state of the schedule.
        scaler: the state of the gradient scaler.
        files: path within a `checkpoint-N` folder → content as uint8, for all else that lies there.
        parameters: names of the optimizer's parameters in the order of their numbers, where they are known.
        notes: what the reader of the last line should know.
        base: content of the configuration of the model under adapters, where it is known.
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
        """Whether the weights are those of adapters, without those of the model under them."""
        return ADAPTER_CONFIG in self.files

    def told(self, name: str) -> dict[str, Any]:
        """A small JSON file; empty where there is no such file."""
        return self._json(self.files.get(name), name)

    def config(self) -> dict[str, Any]:
        """The configuration of the model, or of the one under its adapters; empty where it is not known."""
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
        """Bytes of all tensors and files."""
        parts = (self.weights, self.optimizer, self.scheduler, self.scaler, self.files)
        return sum(lazy.nbytes(tensor) for part in parts for tensor in tensors_of(part))


def tensors_of(tree: object) -> Iterator[torch.Tensor]:
    """All tensors in dicts, lists and tuples."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors_of(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors_of(item)


def content(path: str | Path) -> torch.Tensor:
    """A file as a lazy uint8 tensor of shape (bytes,)."""
    return lazy.declared((os.path.getsize(path),), torch.uint8, lazy.FileRange(str(path), 0))


def files_in(folder: Path, *leave_out: str) -> dict[str, torch.Tensor]:
    """Every file of a folder, by its path within it, but for a manifest.

    Args:
        folder: the folder.
        leave_out: regular expressions for paths, or for the first part of them.
    """
    unwanted = re.compile("|".join([re.escape(MANIFEST), *leave_out]))
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not unwanted.fullmatch(name) and not unwanted.fullmatch(name.partition("/")[0]):
            found[name] = content(path)
    return found


def within(folder: Path, name: str, where: str | Path) -> Path:
    """The file that a checkpoint names.

    Args:
        folder: the checkpoint.
        name: as it is named.
        where: the file that names it.

    Raises:
        CheckpointError: the name leads out of the folder.
    """
    if leaves_folder(name):
        msg = f"`{where}`: it names `{name}`, which leads out of the checkpoint. Don't use it as it is."
        raise CheckpointError(msg)
    return folder / name.replace("\\", "/")
