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
        key: name of the part in the dict that a CheckpointIO takes and gives.
        file: name of the file in the folder.
        older: names that earlier releases gave the file, read but not written.
    """

    key: str
    file: str
    older: tuple[str, ...] = ()


LAYOUT = (
    Part("optimizer", "optimizer.pt", older=("optimizer.bin",)),
    Part("lr_scheduler", "scheduler.pt"),
    Part("scaler", "scaler.pt"),
)
"""The parts that belong to the engine. Weights, random states, `trainer_state.json` and
`training_args.bin` belong to the model and to HF's own code, which writes them beside these."""

STATE = "trainer_state.json"
"""The state of the run; what HF writes last."""

ARGUMENTS = "training_args.bin"
"""The arguments of the run, a pickle of HF's class or ours."""

INCOMPLETE = "checkpoint-is-incomplete.txt"
"""What HF's `enable_jit_checkpoint` leaves in a checkpoint while it writes it."""

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""What PEFT writes an adapter's weights into, in one format or the other."""

ADAPTERS = (*ADAPTER_FILES, *(f"*/{name}" for name in ADAPTER_FILES))
"""The adapter "default" lies in the checkpoint itself, those of another name in a folder of that name."""

PLACES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    *ADAPTER_FILES,
    "pytorch_model_fsdp.bin",
)
"""Where whole weights are looked for in a folder; the first that is there holds them."""

WEIGHTS = (
    *PLACES,
    *ADAPTERS,
    "pytorch_model_fsdp_*/.metadata",
    "global_step*/*.pt",
)
"""Where the weights of a checkpoint lie, one way or another."""

ZERO_FOLDERS = ("global_step*",)
"""Folders in which DeepSpeed keeps its parts, and their universal form."""

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
"""Archives of torch's that are loaded weights-only, or never."""

PICKLES = (*LOADED_WEIGHTS_ONLY, *ZERO_FILES, "*/.metadata")
"""Files that are pickles, in a zip archive of torch's but for `.metadata`, which torch loads as it is."""

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
"""What an optimizer keeps outside of its `state_dict`."""

UNSAVED = "unsaved_weights.safetensors"
"""Weights that training changes and that an adapter's own files leave out."""

OURS = ("compat_manifest.json", "data_state*.pth", CALLBACKS, OPTIMIZER_EXTRA, UNSAVED)
"""What a checkpoint of ours has beside HF's files."""

TRAINERS = (*WEIGHTS, *PICKLES, *_OTHER)
"""Every file that a Trainer itself puts into a checkpoint, models and processing classes aside."""


def is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file, named by its path within a checkpoint, is one of `patterns`; `*` stays in a folder."""
    parts = name.split("/")
    return any(
        len(parts) == len(pieces) and all(map(fnmatchcase, parts, pieces))
        for pieces in (pattern.split("/") for pattern in patterns)
    )


def leaves_folder(name: object) -> bool:
    """Whether a path that a file names leads out of the folder of that file."""
    parts = (*PurePosixPath(str(name)).parts, *PureWindowsPath(str(name)).parts)
    is_absolute = PurePosixPath(str(name)).is_absolute() or bool(PureWindowsPath(str(name)).anchor)
    return not isinstance(name, str) or not name or is_absolute or ".." in parts


@dataclass(frozen=True)
class Lacks:
    """Files that another one names, and that are not beside it.

    Attributes:
        names: their paths from the folder of the file that names them.
    """

    names: tuple[str, ...]

    def within(self, file: str, there: Collection[str]) -> str:
        """What is wrong with `file`, where `there` are all files of its checkpoint, on whichever disk."""
        for name in self.names:
            path = (PurePosixPath(file).parent / name).as_posix()
            if not any(one == path or one.startswith(f"{path}/") for one in there):
                return f"it names {name!r}, which is missing"
        return ""
