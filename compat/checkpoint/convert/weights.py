"""Weights in a folder: safetensors or pickles, in one file or in shards with an index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from huggingface_hub import split_state_dict_into_shards_factory

from compat.checkpoint.convert import lazy, safe, torchfile
from compat.checkpoint.convert.common import within
from compat.checkpoint.layout import PLACES
from compat.checkpoint.shapes import wrong_in_json
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from compat.checkpoint.convert.common import Options

SAFE, PICKLED = ".safetensors", ".bin"

FILES = r"(model|pytorch_model|adapter_model)(_fsdp|-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?"
"""A regular expression for all weights files that a folder may contain."""


def place_of(folder: Path) -> Path | None:
    """Return the weights file of a folder, or the index; None if there are no weights."""
    return next((folder / name for name in PLACES if (folder / name).is_file()), None)


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Name → tensor that `lazy.real` reads.

    Raises:
        CheckpointError: there are no weights, a shard is missing, or the index is not safe.
    """
    place = place_of(folder)
    if place is None:
        msg = f"`{folder}`: it holds no weights ({', '.join(PLACES)}). Give the folder that does."
        raise CheckpointError(msg)
    return _read_shards(folder, place) if place.suffix == ".json" else _read_file(place)


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == SAFE:
        return safe.read(path)
    tree: dict[str, torch.Tensor] = torchfile.read(path)
    return tree


def _read_shards(folder: Path, index: Path) -> dict[str, torch.Tensor]:
    text = index.read_text(encoding="utf-8", errors="replace")
    if wrong := wrong_in_json(index.name, text):
        msg = f"`{index}`: not an index of weights: {wrong}. Copy it again, whole."
        raise CheckpointError(msg)
    places: dict[str, str] = json.loads(text)["weight_map"]
    found: dict[str, torch.Tensor] = {}
    for name in sorted(set(places.values())):
        shard = within(folder, name, index)
        if not shard.is_file():
            msg = f"`{index}`: it names `{name}`, which is missing. Copy the shards again, all of them."
            raise CheckpointError(msg)
        found.update(_read_file(shard))
    if lost := [name for name in places if name not in found]:
        msg = f"`{index}`: no shard holds `{lost[0]}`. Copy the shards again, all of them."
        raise CheckpointError(msg)
    return found


def write(tensors: Mapping[str, torch.Tensor], folder: Path, stem: str, options: Options) -> None:
    """Write safetensors as `save_pretrained` does: one file, or shards with an index.

    Args:
        tensors: name → tensor.
        folder: where.
        stem: `model`, or `adapter_model`, which is never sharded.
        options: `max_shard_size` and `dtype`.
    """
    if stem != "model":
        safe.write(tensors, folder / f"{stem}{SAFE}", options.dtype)
        return
    limit = str(options.max_shard_size)
    try:
        split: Any = split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_id=lambda _: None,
            get_storage_size=lambda tensor: _size(tensor, options),
            filename_pattern=f"{stem}{{suffix}}{SAFE}",
            max_shard_size=int(limit) if limit.isdecimal() else limit,
        )
    except ValueError as error:
        msg = f"`--max-shard-size {options.max_shard_size}`: {error}"
        raise CheckpointError(msg) from error
    for file, names in split.filename_to_tensors.items():
        safe.write({name: tensors[name] for name in names}, folder / file, options.dtype)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{stem}{SAFE}.index.json").write_text(text, encoding="utf-8")


def write_files(files: Mapping[str, torch.Tensor], folder: Path, source: str | Path) -> None:
    """Write small files.

    Args:
        files: path within the folder → content as uint8.
        folder: where.
        source: the checkpoint that they are from.
    """
    for name, content in files.items():
        path = within(folder, name, source)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(lazy.buffer(lazy.real(content).contiguous()))


def _size(tensor: torch.Tensor, options: Options) -> int:
    changes = options.dtype is not None and tensor.is_floating_point()
    return tensor.numel() * (options.dtype if changes and options.dtype else tensor.dtype).itemsize
