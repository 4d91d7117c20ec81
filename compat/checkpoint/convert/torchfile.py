"""Files of `torch.save`: their structure is read without their data, and written one storage at a time."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch.serialization import skip_data

from compat.checkpoint.convert import lazy
from compat.checkpoint.pickles import refused_class, with_entry
from compat.checkpoint.shards import Slice
from compat.errors import CheckpointError
from compat.upstream.features import STORAGES_KNOW_THEIR_PLACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PROTOCOL = 2
"""`torch.save`'s."""


def read(path: str | Path, part: tuple[int, int] | None = None, pickle_module: object = None) -> Any:
    """What `torch.save` has written, with tensors that `lazy.real` reads.

    Tensors that were in one storage are so again, and all of them are the CPU's. Files of the form before
    torch 1.6 are read with their data.

    Args:
        path: the file.
        part: offset and length in bytes, where it lies inside of another file.
        pickle_module: what unpickles it, if not torch's reader of plain data.

    Raises:
        CheckpointError: the file is no such file, or holds more than plain data.
    """
    how: dict[str, Any] = (
        {"weights_only": True}
        if pickle_module is None
        else {"weights_only": False, "pickle_module": pickle_module}
    )
    offset = part[0] if part else 0
    try:
        if part is None and not zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", **how)
        if part is None and not STORAGES_KNOW_THEIR_PLACE:
            # Mapped, and so read as late.
            return _load_apart(path, mmap=True, **how)
        file: Any = Slice(path, *part) if part else open(path, "rb")  # noqa: SIM115
        with file:
            if not STORAGES_KNOW_THEIR_PLACE:
                return _load_apart(file, **how)
            with lazy.loading():
                tree = torch.load(file, **how)
            return _placed(tree, str(path), offset, {})
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).strip().partition("\n")[0]
        kind = refused_class(error)
        why = f"it holds {with_entry(path, kind)}" if kind else f"{type(error).__name__}: {first}"
        msg = (
            f"`{path}`: torch cannot read it as plain data ({why}). "
            "Give a checkpoint that is whole and holds tensors, numbers, texts, lists and dicts only."
        )
        raise CheckpointError(msg) from error


def _load_apart(file: Any, **how: Any) -> Any:
    """Load in a thread of its own: below torch 2.7 it is refused within `skip_data`, which is a thread's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(torch.load, file, map_location="cpu", **how).result()


def _placed(tree: Any, path: str, offset: int, storages: dict[int, Any]) -> Any:
    """`tree` with tensors that know their place in the file."""
    if lazy.is_lazy(tree):
        old = tree.untyped_storage()
        if hasattr(old, "source"):
            # Met before, in a dict or a list that stands in two places.
            return tree
        place = offset + old._checkpoint_offset
        if place not in storages:
            storages[place] = lazy.storage(old.nbytes(), lazy.FileRange(path, place))
        return lazy.view(storages[place], tree.dtype, tree.storage_offset(), tree.shape, tree.stride())
    if isinstance(tree, dict):
        # Keys as well: optimizers keep values by the parameter that they are for.
        items = [tuple(_placed(part, path, offset, storages) for part in item) for item in tree.items()]
        tree.clear()
        tree.update(items)
    elif isinstance(tree, list):
        tree[:] = [_placed(item, path, offset, storages) for item in tree]
    elif type(tree) is tuple:
        return tuple(_placed(item, path, offset, storages) for item in tree)
    return tree


class _Pickler(pickle.Pickler):
    """Keeps the storages that it meets, in the order in which torch numbers them."""

    storages: dict[int, Any]

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, torch.Tensor):
            storage = obj.untyped_storage()
            self.storages.setdefault(storage._cdata, storage)
        return NotImplemented


class _Archive:
    """What torch writes into; fills in the data that it skips."""

    def __init__(self, path: str, storages: dict[int, Any]) -> None:
        self._writer: Any = torch._C.PyTorchFileWriter(path)
        self._storages = storages
        self.write_record: Callable[[str, Any, int], None] = self._writer.write_record
        self.close: Callable[[], None] = self._writer.write_end_of_file

    def write_record_metadata(self, name: str, count: int) -> None:
        """Where torch would leave a hole, write the storage that belongs there."""
        storage = list(self._storages.values())[int(name.rpartition("/")[2])]
        if count and storage.device.type == "meta":
            storage = lazy.read_storage(storage).untyped_storage()
        self.write_record(name, storage, count)


def write(tree: object, path: str | Path) -> None:
    """Write what `torch.save` would write, with one storage at a time in memory.

    Args:
        tree: what to save; its tensors may be lazy ones.
        path: the file.
    """
    storages: dict[int, Any] = {}
    kind = type("_Keeping", (_Pickler,), {"storages": storages})
    module = type("_Module", (), {"Pickler": kind})
    # A writer that is not closed ends the interpreter, also where a full disk has kept it from writing.
    with (
        contextlib.closing(_Archive(str(path), storages)) as archive,
        skip_data(materialize_fake_tensors=True),
    ):
        save: Any = torch.serialization._save
        save(tree, archive, module, _PROTOCOL, False)
