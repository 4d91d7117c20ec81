"""A Lightning CheckpointIO that reads and writes HF's `checkpoint-N` folders."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
import warnings
import zipfile
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_map
from transformers.utils import logging
from typing_extensions import override

from compat.checkpoint.atomic import partial_of, put, writing
from compat.checkpoint.flushing import flush, following
from compat.checkpoint.layout import LAYOUT
from compat.checkpoint.pickles import named_in, refused_class, with_entry
from compat.checkpoint.verify import damage
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lightning.pytorch.strategies import Strategy

logger = logging.get_logger("transformers.trainer")

PROJECTORS = (
    ("galore_torch.galore_projector", "GaLoreProjector"),
    ("apollo_torch.random_projector", "GradientProjector"),
    ("apollo_torch.svd_projector", "GaLoreProjector"),
    ("pytorch_optimizer.optimizer.scion", "LMONorm"),
    ("pytorch_optimizer.optimizer.utils.galore", "GaLoreProjector"),
    ("pytorch_optimizer.optimizer.utils.graft", "AdaGradGraft"),
    ("pytorch_optimizer.optimizer.utils.graft", "Graft"),
    ("pytorch_optimizer.optimizer.utils.graft", "RMSPropGraft"),
    ("pytorch_optimizer.optimizer.utils.graft", "SGDGraft"),
    ("pytorch_optimizer.optimizer.utils.graft", "SQRTNGraft"),
    ("pytorch_optimizer.optimizer.utils.partition", "BlockPartitioner"),
    ("pytorch_optimizer.optimizer.utils.partition", "PreConditionerType"),
    ("pytorch_optimizer.optimizer.utils.preconditioner", "PreConditioner"),
)
"""Module and name of classes that optimizers keep in their states. They hold tensors and numbers, and are
loaded if the optimizer has imported them."""

LOADABLE = {
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    *(
        f"torch.{kind}Storage"
        for kind in ("BFloat16", "Bool", "Byte", "Double", "Float", "Half", "Int", "Long")
    ),
}
"""Names in a pickle that each release of torch loads as weights only."""

HAVE_PLAIN_STATES = "Have `state_dict()` return tensors, numbers, strings, lists and dicts"
"""The advice in the error if a state holds objects of a class."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's CheckpointIO with atomic writes and with verification on load."""

    @override
    def save_checkpoint(
        self,
        checkpoint: Mapping[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write a file atomically.

        Args:
            checkpoint: as in Lightning.
            path: a file, or a URL, which Lightning's own code writes.
            storage_options: as in Lightning; refused.

        Raises:
            CheckpointError: the disk, the folder or its permissions prevent the writing.
        """
        if "://" in str(path):
            super().save_checkpoint(dict(checkpoint), path, storage_options=storage_options)
            return
        with writing(path):
            super().save_checkpoint(dict(checkpoint), partial_of(path), storage_options=storage_options)
            flush(partial_of(path))
            put(partial_of(path), Path(path))

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load a Lightning checkpoint, after verifying it.

        Args:
            path: a file, or a URL, which Lightning's own code loads.
            map_location: device that tensors are read to.
            weights_only: as in Lightning.

        Raises:
            CheckpointError: the file is truncated or damaged.
        """
        if os.path.isfile(path) and (wrong := damage(path)):
            msg = f"{wrong[0]}. Give an earlier checkpoint, or copy it again, whole."
            raise CheckpointError(msg)
        with _harmless_classes():
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        return loaded


def keep_files_whole(strategy: Strategy) -> None:
    """Make a strategy write files atomically, and verify the files that it loads.

    A strategy with a custom CheckpointIO is not changed.

    Args:
        strategy: the strategy of a Lightning Trainer.
    """
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()


class HFCheckpointIO(WholeCheckpointIO):
    """Folders have HF's layout, one file for each part; a file path is a plain Lightning checkpoint.

    Mirrors the files that `transformers.Trainer._save_optimizer_and_scheduler` and `_save_scaler` write.
    """

    @override
    def save_checkpoint(
        self,
        checkpoint: Mapping[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write the parts named in `checkpoint` into the folder `path`, or all of it into the file `path`.

        Args:
            checkpoint: part name → state dict, with names from `LAYOUT`; or a Lightning checkpoint.
            path: a folder (it need not exist yet), or a file name with an extension.
            storage_options: as in Lightning; refused.
        """
        if not _is_folder(path):
            super().save_checkpoint(checkpoint, path, storage_options=storage_options)
            return
        os.makedirs(path, exist_ok=True)
        for part in LAYOUT:
            if part.key in checkpoint:
                with _without_warnings():
                    save_plain(checkpoint[part.key], os.path.join(path, part.file))
                _warn_of_unloadable(os.path.join(path, part.file), part.key)

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read the parts in the folder `path`, or the Lightning checkpoint `path`.

        Args:
            path: a `checkpoint-N` folder, or a file.
            map_location: device that tensors are read to.
            weights_only: for a Lightning file, as in Lightning; a folder is always read that way.

        Returns:
            Part name → state dict for each existing part, or the Lightning checkpoint.
        """
        if not os.path.isdir(path):
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return loaded
        parts = {}
        for part in LAYOUT:
            for name in (part.file, *part.older):
                file = os.path.join(path, name)
                if os.path.isfile(file):
                    parts[part.key] = load_plain(file, map_location)
                    break
        return parts


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress torch.save's warning about a scheduler's state; HF logs that warning once, as text."""
    if threading.current_thread() is not threading.main_thread():
        # Warning filters are global to the process: another thread must not change them.
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def numpys_older_names() -> contextlib.AbstractContextManager[None]:
    """Let torch load arrays written with NumPy 1, whose names differ from those of NumPy 2."""
    allowed: contextlib.AbstractContextManager[None] = torch.serialization.safe_globals(_numpys_names())
    return allowed


def _numpys_names() -> list[Any]:
    reconstruct: Any = np.empty(0).__reduce__()[0]
    return [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]


def save_plain(state: object, file: str) -> None:
    """Write a state with NumPy numbers converted to Python's, which torch loads as plain data."""
    plain = tree_map(lambda value: value.item() if isinstance(value, np.generic) else value, state)
    with following(file):
        torch.save(plain, file, pickle_module=_PICKLE)


class _Pickler(pickle.Pickler):
    """Pickles a deque in one piece: torch's reader supports appending items only for lists."""

    @override
    def reducer_override(self, obj: object) -> Any:
        return (deque, (list(obj), obj.maxlen)) if type(obj) is deque else NotImplemented


_PICKLE = SimpleNamespace(__name__="pickle", Pickler=_Pickler)


def load_plain(file: str | IO[bytes], map_location: Any | None = "cpu") -> Any:
    """Read a state without running anything that the file names.

    Raises:
        CheckpointError: the file cannot be read, or names a class that torch does not consider safe.
    """
    try:
        with _harmless_classes():
            return torch.load(file, map_location=map_location, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        if (kind := refused_class(error)) and isinstance(file, str):
            msg = (
                f"`{file}`: not loaded: it holds {with_entry(file, kind)}, and a pickle of classes could run "
                f"code. {HAVE_PLAIN_STATES}, and save again; or resume from another checkpoint."
            )
            raise CheckpointError(msg) from error
        reason = str(error).partition("\n")[0]
        msg = (
            f"`{file}`: not loaded ({type(error).__name__}: {reason}). It is damaged, or names classes that "
            "could run code. Resume from another checkpoint; `resume_from_checkpoint=True` finds the newest "
            "that is whole."
        )
        raise CheckpointError(msg) from error


def unloadable(file: str) -> str:
    """Return the class that prevents a weights-only load of a file; empty if there is none."""
    with contextlib.suppress(CheckpointError):
        # A load of tensors, even of none of their values, reads the header of each from the disk.
        if LOADABLE.issuperset(named_in(file)):
            return ""
    try:
        with _harmless_classes():
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        return with_entry(file, refused_class(error) or "a class")
    return ""


def _harmless_classes() -> contextlib.AbstractContextManager[None]:
    """Let torch load number arrays, deques and projectors: they only build values."""
    kinds = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFDgGSUmM"]
    projectors = (getattr(sys.modules.get(module), name, None) for module, name in PROJECTORS)
    allowed: contextlib.AbstractContextManager[None] = torch.serialization.safe_globals(
        [*_numpys_names(), deque, np.ndarray, np.dtype, *kinds, *filter(None, projectors)]
    )
    return allowed


def _warn_of_unloadable(file: str, key: str) -> None:
    """Warn when saving, not only when resuming, that a state cannot be loaded again."""
    if reason := unloadable(file):
        logger.warning(
            f"`{file}`: the state of the {key} holds {reason}, which is not loaded "
            "again, since a pickle of classes could run code. No run will resume from this checkpoint. "
            f"{HAVE_PLAIN_STATES}, or set `save_only_model=True`."
        )


def _is_folder(path: str | Path) -> bool:
    return os.path.isdir(path) or not os.path.splitext(path)[1]
