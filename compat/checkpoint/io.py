"""A Lightning CheckpointIO that reads and writes HF's `checkpoint-N` folders."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from compat.checkpoint.layout import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class HFCheckpointIO(TorchCheckpointIO):
    """Folders are HF's layout, one file a part; a path to a file is a plain Lightning checkpoint.

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
            super().save_checkpoint(dict(checkpoint), path, storage_options=storage_options)
            return
        os.makedirs(path, exist_ok=True)
        for part in LAYOUT:
            if part.key in checkpoint:
                # A scheduler's state may hold what torch.save warns about; HF shows that warning once, as
                # text.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    torch.save(checkpoint[part.key], os.path.join(path, part.file))

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read the parts that the folder `path` has, or the Lightning checkpoint `path`.

        Args:
            path: a `checkpoint-N` folder, or a file.
            map_location: device that tensors are read to.
            weights_only: for a Lightning file, as in Lightning; a folder is always read that way.

        Returns:
            Part name → state dict for each part that is there, or the Lightning checkpoint.
        """
        if not os.path.isdir(path):
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return loaded
        parts = {}
        for part in LAYOUT:
            for name in (part.file, *part.older):
                file = os.path.join(path, name)
                if os.path.isfile(file):
                    parts[part.key] = torch.load(file, map_location=map_location, weights_only=True)
                    break
        return parts


def _is_folder(path: str | Path) -> bool:
    return os.path.isdir(path) or not os.path.splitext(path)[1]
