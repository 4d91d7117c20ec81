"""Files of `torch.save`: the structure is read without the data, and one storage is written at a time."""

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
    """Read a file of `torch.save`, with lazy tensors.

    Tensors that shared a storage share one again, and all tensors are on the CPU. Files in the format before
    torch 1.6 are read with their data.

    Args:
        path: the file.
        part: offset and length in bytes, if it is embedded in another file.
        pickle_module: the module that unpickles it, instead of torch's weights-only reader.

    Raises:
        CheckpointError: the file is not a torch file, or holds more than plain data.
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
            # Memory-mapped, so that it is also read late.
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
    """Load in another thread: torch below 2.7 refuses it within `skip_data`, which is thread-local."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(torch.load, file, map_location="cpu", **how).result()


def _placed(tree: Any, path: str, offset: int, storages: dict[int, Any]) -> Any:
    """Replace the tensors of `tree` by lazy ones that refer to the file."""
    if lazy.is_lazy(tree):
        old = tree.untyped_storage()
        if hasattr(old, "source"):
            # Already replaced, in a dict or list that occurs twice.
            return tree
        place = offset + old._checkpoint_offset
        if place not in storages:
            storages[place] = lazy.storage(old.nbytes(), lazy.FileRange(path, place))
        return lazy.view(storages[place], tree.dtype, tree.storage_offset(), tree.shape, tree.stride())
    if isinstance(tree, dict):
        # Keys as well: optimizers use parameters as keys.
        items = [tuple(_placed(part, path, offset, storages) for part in item) for item in tree.items()]
        tree.clear()
        tree.update(items)
    elif isinstance(tree, list):
        tree[:] = [_placed(item, path, offset, storages) for item in tree]
    elif type(tree) is tuple:
        return tuple(_placed(item, path, offset, storages) for item in tree)
    return tree


class _Pickler(pickle.Pickler):
    """Records storages in the order in which torch numbers them."""

    storages: dict[int, Any]

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, torch.Tensor):
            storage = obj.untyped_storage()
            self.storages.setdefault(storage._cdata, storage)
        return NotImplemented


class _Archive:
    """The archive that torch writes to; adds the data that torch skips."""

    def __init__(self, path: str, storages: dict[int, Any]) -> None:
        self._writer: Any = torch._C.PyTorchFileWriter(path)
        self._storages = storages
        self.write_record: Callable[[str, Any, int], None] = self._writer.write_record
        self.close: Callable[[], None] = self._writer.write_end_of_file

    def write_record_metadata(self, name: str, count: int) -> None:
        """Write the storage for which torch would leave a gap."""
        storage = list(self._storages.values())[int(name.rpartition("/")[2])]
        if count and storage.device.type == "meta":
            storage = lazy.read_storage(storage).untyped_storage()
        self.write_record(name, storage, count)


def write(tree: object, path: str | Path) -> None:
    """Write the same file as `torch.save`, with one storage at a time in memory.

    Args:
        tree: the object to save; its tensors may be lazy.
        path: the file.
    """
    storages: dict[int, Any] = {}
    kind = type("_Keeping", (_Pickler,), {"storages": storages})
    module = type("_Module", (), {"Pickler": kind})
    # An unclosed writer aborts the interpreter, even if a full disk made the writing fail.
    with (
        contextlib.closing(_Archive(str(path), storages)) as archive,
        skip_data(materialize_fake_tensors=True),
    ):
        save: Any = torch.serialization._save
        save(tree, archive, module, _PROTOCOL, False)
