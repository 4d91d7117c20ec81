"""Folders of `torch.distributed.checkpoint`, read and written one tensor at a time in a single process."""

from __future__ import annotations

import functools
import math
import warnings
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch.distributed.checkpoint import filesystem, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import WriteResult
from typing_extensions import override

from compat.checkpoint.atomic import cause_of
from compat.checkpoint.convert import lazy, torchfile
from compat.checkpoint.convert.common import within
from compat.checkpoint.shards import METADATA, Slice, read_metadata
from compat.checkpoint.verify import check_sums
from compat.errors import CheckpointError
from compat.upstream.features import accepts

if TYPE_CHECKING:
    from pathlib import Path

    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

_FILE = "__0_0.distcp"
"""The name of the only file of the first process."""

# Below torch 2.7 this cannot be passed, and is detected.
_ALONE: dict[str, Any] = {"no_dist": True} if accepts(state_dict_saver.save, "no_dist") else {}


def read(folder: Path) -> dict[str, Any]:
    """Read the saved tree; its tensors are assembled from their shards when `lazy.real` reads them.

    Args:
        folder: the folder, with `.metadata` and the files that it names.

    Raises:
        CheckpointError: its pickle would run code, a file is missing, or the format is newer.
    """
    metadata = read_metadata(folder)
    shards: dict[str, dict[Any, Any]] = {}
    for index, place in metadata.storage_data.items():
        if getattr(place, "transform_descriptors", None):
            msg = f"`{folder}`: its tensors are packed. Save it anew with a plain FileSystemWriter."
            raise CheckpointError(msg)
        shards.setdefault(index.fqn, {})[index.offset] = _place(folder, place)
    paths: dict[str, Any] = metadata.planner_data or {}
    tree: dict[str, Any] = {}
    for name, entry in metadata.state_dict_metadata.items():
        _put(tree, paths.get(name, (name,)), _leaf(name, entry, shards[name]))
    whole: dict[str, Any] = _with_lists(tree)
    return whole


def check(folder: Path) -> None:
    """Read all shards, and check each tensor against its checksum, without keeping data in memory.

    Args:
        folder: as for `read`.

    Raises:
        CheckpointError: names the damaged file; also as for `read`.
    """
    for place in read_metadata(folder).storage_data.values():
        file, part = _place(folder, place)
        try:
            with Slice(file, *part) as archive:
                check_sums(cast("IO[bytes]", archive))
        except Exception as error:
            # Damaged offsets may point anywhere.
            msg = f"`{file}`: cut short or damaged ({error}). Copy it again, whole."
            raise CheckpointError(msg) from error


def _place(folder: Path, place: Any) -> tuple[Path, tuple[int, int]]:
    """Return the file of a tensor, and the offset and length of its part."""
    file = within(folder, place.relative_path, folder / METADATA)
    if not file.is_file():
        msg = f"`{folder / METADATA}`: it names `{place.relative_path}`, which is missing. Copy it whole."
        raise CheckpointError(msg)
    return file, (place.offset, place.length)


def _leaf(name: str, entry: Any, shards: dict[Any, Any]) -> Any:
    if isinstance(entry, BytesStorageMetadata):
        [(file, part)] = shards.values()
        return torchfile.read(file, part)
    assert isinstance(entry, TensorStorageMetadata), name
    dtype = entry.properties.dtype
    places = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in entry.chunks}
    parts = [
        (offset, places[tuple(offset or ())], *where) for offset, where in _by_offset(shards, entry.size)
    ]
    make = functools.partial(_assembled, tuple(entry.size), dtype, parts)
    return lazy.declared(entry.size, dtype, lazy.Assembled(make))


def _by_offset(shards: dict[Any, Any], size: torch.Size) -> list[tuple[Any, Any]]:
    # A tensor that is not sharded has no offset in the index of some releases.
    return [
        (offset if offset is not None else torch.Size([0] * len(size)), at) for offset, at in shards.items()
    ]


def _assembled(shape: tuple[int, ...], dtype: torch.dtype, parts: list[Any]) -> torch.Tensor:
    if len(parts) == 1 and parts[0][1] == shape:
        return _chunk(*parts[0][2:]).contiguous()
    whole = lazy.memory(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
    for offset, sizes, file, part in parts:
        target = whole
        for dimension, (start, length) in enumerate(zip(offset, sizes, strict=True)):
            target = target.narrow(dimension, start, length)
        target.copy_(_chunk(file, part))
    return whole


def _chunk(file: Path, part: tuple[int, int]) -> torch.Tensor:
    return lazy.filled(torchfile.read(file, part))


def _put(tree: dict[Any, Any], path: tuple[Any, ...], value: object) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _with_lists(tree: object) -> Any:
    """Restore lists in `tree` where keys are list indices: the flat format has no lists."""
    if not isinstance(tree, dict):
        return tree
    items = {key: _with_lists(value) for key, value in tree.items()}
    is_list = bool(items) and set(items) == set(range(len(items))) and all(type(key) is int for key in items)
    return [items[place] for place in range(len(items))] if is_list else items


class _Planner(DefaultSavePlanner):
    """Reads each tensor only when it is written."""

    @override
    def lookup_object(self, index: MetadataIndex) -> Any:
        found = super().lookup_object(index)
        return lazy.real(found).contiguous() if isinstance(found, torch.Tensor) else found


class _Writer(filesystem.FileSystemWriter):
    """Releases each tensor before the next one; torch's own writer keeps all tensors of a file."""

    @override
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        results = []
        with self.fs.create_stream(self.fs.concat_path(self.path, _FILE), "wb") as stream:
            file: Any = stream
            for item in plan.items:
                start = stream.tell()
                data = planner.resolve_data(item)
                if isinstance(data, torch.Tensor):
                    torch.save(data, file)
                else:
                    stream.write(data.getbuffer())
                length = stream.tell() - start
                place = filesystem._StorageInfo(_FILE, start, length)
                results.append(WriteResult(index=item.index, size_in_bytes=length, storage_data=place))
        done: torch.futures.Future[Any] = torch.futures.Future()
        done.set_result(results)
        return done


def write(tree: dict[str, Any], folder: Path) -> None:
    """Write a tree as a single process would.

    Args:
        tree: dicts, lists and tensors, lazy or not.
        folder: the folder, which is created.
    """
    writer = _Writer(folder)
    with warnings.catch_warnings():
        # torch warns that it assumes a single process, even when this is passed explicitly.
        warnings.filterwarnings("ignore", "torch.distributed is (disabled|unavailable)", UserWarning)
        try:
            state_dict_saver.save(tree, storage_writer=writer, planner=_Planner(), **_ALONE)
        except CheckpointException as error:
            raise cause_of(error) from error
