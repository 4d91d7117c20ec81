"""Protects a checkpoint while callbacks may change it: their changes must not destroy it.

Until the callbacks return, the folder `_held-checkpoint-N` next to it has a hard link to, or a copy of, each
original file. A process that is killed meanwhile leaves that folder behind.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from compat.checkpoint.atomic import beside
from compat.checkpoint.flushing import Traits, flush, traits
from compat.checkpoint.manifest import (
    MANIFEST,
    MANIFEST_ERRORS,
    differences,
    files_of,
    read,
    reseal,
)
from compat.checkpoint.verify import problems

if TYPE_CHECKING:
    from collections.abc import Mapping

HELD = "_held-"

_AGAIN = "_manifest"

_COPIED = 1 << 24
"""Bytes. A file up to this size is copied; a larger one is hard-linked, which costs nothing but does not
protect against writes into the file itself."""


def hand_over(checkpoint: str | Path) -> dict[str, Traits]:
    """Record the state of a checkpoint before callbacks change it.

    Args:
        checkpoint: a sealed folder at its final path.

    Returns:
        The traits that identify each file, for `take_back`.
    """
    root, held = Path(checkpoint), beside(checkpoint, HELD)
    forget(checkpoint)
    try:
        for name in (*read(root), MANIFEST):
            _double(root / name, held / name)
    except (*MANIFEST_ERRORS, shutil.Error):
        # The file system may lack links or space: the checkpoint itself is more important.
        forget(checkpoint)
    return {name: traits(root / name) for name in files_of(root)}


def take_back(checkpoint: str | Path, known: Mapping[str, Traits]) -> None:
    """Seal a checkpoint in its changed state; `forget` removes the original files.

    Args:
        checkpoint: as for `hand_over`; it may have been removed since.
        known: the result of `hand_over`.
    """
    if Path(checkpoint, MANIFEST).is_file():
        reseal(checkpoint, known)
    (beside(checkpoint, HELD) / MANIFEST).unlink(missing_ok=True)


def forget(checkpoint: str | Path) -> None:
    """Remove the files that `hand_over` has kept of a checkpoint."""
    shutil.rmtree(beside(checkpoint, HELD), ignore_errors=True)


def reconcile(folder: str | Path) -> list[str]:
    """Undo the changes of a killed process to checkpoints, or accept them.

    Args:
        folder: the folder that holds the checkpoints.

    Returns:
        One sentence for each changed checkpoint, on what was done.
    """
    done = []
    for held in sorted(Path(folder).glob(f"{HELD}checkpoint-*")):
        checkpoint = held.with_name(held.name.removeprefix(HELD))
        if checkpoint.is_dir() and held.is_dir() and (said := _reconciled(checkpoint, held)):
            done.append(f"`{checkpoint}`: a run was killed while a callback changed it; {said}.")
        shutil.rmtree(held, ignore_errors=True)
    return done


def _reconciled(checkpoint: Path, held: Path) -> str:
    if not (held / MANIFEST).is_file():
        # The process was killed before the checkpoint was handed over, or after it was taken back.
        return ""
    # Only its manifest may be new; the copy is kept until this function ends.
    shutil.copy2(held / MANIFEST, held / _AGAIN)
    _put_back(held / _AGAIN, checkpoint / MANIFEST)
    changed = [name for name, _ in differences(checkpoint)]
    sound = set(changed) - {name for name, _ in differences(held, only=changed)}
    for name in sound:
        _put_back(held / name, checkpoint / name)
    if not changed:
        return ""
    if sound == set(changed):
        return f"as it was written again ({', '.join(changed)})"
    # A file that was written into has no copy. The change counts as intended if the file can be read.
    rest = ", ".join(name for name in changed if name not in sound)
    (checkpoint / MANIFEST).unlink()
    is_readable = not problems(checkpoint, needs_weights=False)
    shutil.copy2(held / MANIFEST, checkpoint / MANIFEST)
    if not is_readable:
        return f"what it has left of {rest} cannot be read"
    reseal(checkpoint)
    return f"taken as it is now ({rest})"


def _put_back(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    flush(target.parent)


def _double(file: Path, double: Path) -> None:
    double.parent.mkdir(parents=True, exist_ok=True)
    if file.stat().st_size > _COPIED:
        os.link(file, double)
    else:
        shutil.copy2(file, double)
