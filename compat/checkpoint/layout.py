"""The layout of a `checkpoint-N` folder, as data."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint.

    Attributes:
        key: name of the part in the dict that a CheckpointIO takes and returns.
        file: name of the file in the folder.
        older: names of the file in earlier releases, read but not written.
    """

    key: str
    file: str
    older: tuple[str, ...] = ()


LAYOUT = (
    Part("optimizer", "optimizer.pt", older=("optimizer.bin",)),
    Part("lr_scheduler", "scheduler.pt"),
    Part("scaler", "scaler.pt"),
)
"""The parts that the engine writes. The model and HF's own code write weights, random states,
`trainer_state.json` and `training_args.bin`."""

STATE = "trainer_state.json"
"""The state of the run; HF writes this file last."""

ARGUMENTS = "training_args.bin"
"""The arguments of the run, a pickle of HF's class or of compat's."""

INCOMPLETE = "checkpoint-is-incomplete.txt"
"""The file that HF's `enable_jit_checkpoint` creates in a checkpoint while writing it."""

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""The files of an adapter's weights, in either format."""

ADAPTERS = (*ADAPTER_FILES, *(f"*/{name}" for name in ADAPTER_FILES))
"""The adapter "default" is in the checkpoint itself, any other adapter in a folder of its name."""

PLACES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    *ADAPTER_FILES,
    "pytorch_model_fsdp.bin",
)
"""The files that may hold full weights; the first existing one is used."""

WEIGHTS = (
    *PLACES,
    *ADAPTERS,
    "pytorch_model_fsdp_*/.metadata",
    "global_step*/*.pt",
)
"""All possible paths of the weights of a checkpoint."""

ZERO_FOLDERS = ("global_step*",)
"""Folders of DeepSpeed's parts, and of their universal form."""

ZERO_FILES = tuple(f"{folder}/{depth}*.pt" for folder in ZERO_FOLDERS for depth in ("", "*/", "*/*/"))
"""Archives that DeepSpeed loads as pickles."""

LOADED_WEIGHTS_ONLY = (
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "data_state*.pth",
    "lightning_callbacks.pth",
    "optimizer_extra.pth",
    ARGUMENTS,
    "pytorch_model*.bin",
    "adapter_model.bin",
    "*/adapter_model.bin",
)
"""Torch archives that are loaded weights-only, or never."""

PICKLES = (*LOADED_WEIGHTS_ONLY, *ZERO_FILES, "*/.metadata")
"""Pickle files, in a torch zip archive except for `.metadata`, which torch unpickles directly."""

_OTHER = (
    "model-*.safetensors",
    "pytorch_model-*.bin",
    "pytorch_model_fsdp_*/*",
    "optimizer_*/*",
    "zero_to_fp32.py",
    "latest*",
    STATE,
    INCOMPLETE,
)

CALLBACKS = "lightning_callbacks.pth"
"""States of Lightning's callbacks."""

OPTIMIZER_EXTRA = "optimizer_extra.pth"
"""State that an optimizer keeps outside of its `state_dict`."""

UNSAVED = "unsaved_weights.safetensors"
"""Weights that training changes and that an adapter's own files omit."""

OURS = ("compat_manifest.json", "data_state*.pth", CALLBACKS, OPTIMIZER_EXTRA, UNSAVED)
"""The files of a compat checkpoint in addition to HF's."""

TRAINERS = (*WEIGHTS, *PICKLES, *_OTHER)
"""Every file that a Trainer itself writes into a checkpoint, except those of models and processing
classes."""


def is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path within a checkpoint matches one of `patterns`; `*` does not match `/`."""
    parts = name.split("/")
    return any(
        len(parts) == len(pieces) and all(map(fnmatchcase, parts, pieces))
        for pieces in (pattern.split("/") for pattern in patterns)
    )


def leaves_folder(name: object) -> bool:
    """Whether a path that a file names points outside of that file's folder."""
    parts = (*PurePosixPath(str(name)).parts, *PureWindowsPath(str(name)).parts)
    is_absolute = PurePosixPath(str(name)).is_absolute() or bool(PureWindowsPath(str(name)).anchor)
    return not isinstance(name, str) or not name or is_absolute or ".." in parts


@dataclass(frozen=True)
class Lacks:
    """Files that another file names and that are missing.

    Attributes:
        names: their paths relative to the folder of that file.
    """

    names: tuple[str, ...]

    def within(self, file: str, there: Collection[str]) -> str:
        """Describe the problem of `file`; `there` are all files of its checkpoint, on all disks."""
        for name in self.names:
            path = (PurePosixPath(file).parent / name).as_posix()
            if not any(one == path or one.startswith(f"{path}/") for one in there):
                return f"it names {name!r}, which is missing"
        return ""
