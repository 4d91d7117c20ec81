"""Atomic checkpoints: each is written to a temporary folder next to its final one, and then renamed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from compat.checkpoint.flushing import flush
from compat.checkpoint.layout import STATE, TRAINERS, is_one_of
from compat.checkpoint.manifest import (
    MANIFEST,
    MANIFEST_ERRORS,
    differences,
    files_of,
    read,
    reseal,
    saved_as,
    seal,
)
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from compat.checkpoint.manifest import Save

# HF treats folders that begin with `checkpoint-` as checkpoints, and uploads none that begin with `_`.
PARTIAL, REPLACED, REMOVED = "_partial-", "_replaced-", "_removed-"
"""Prefixes of a checkpoint that is being written, replaced by a new one, or removed."""

_LEFTOVER = re.compile(rf"({PARTIAL}|{REPLACED}|{REMOVED})(checkpoint-\d+)")

_TORCH_CANNOT_WRITE = re.compile(
    r"PytorchStreamWriter|inline_container|unexpected pos|cannot be opened|iostream error"
)


def partial_of(checkpoint: str | Path) -> Path:
    """Return the folder that a checkpoint is written to until it is complete."""
    return beside(checkpoint, PARTIAL)


def begin(checkpoint: str | Path) -> Path:
    """Create an empty folder to write a checkpoint to.

    Args:
        checkpoint: where it shall appear.

    Raises:
        CheckpointError: a file has the name of the checkpoint.
    """
    if Path(checkpoint).exists() and not Path(checkpoint).is_dir():
        msg = f"`{checkpoint}`: a file has the name of a checkpoint to be saved. Move it away."
        raise CheckpointError(msg)
    folder = partial_of(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def commit(checkpoint: str | Path) -> None:
    """Flush a complete checkpoint to the disk, and move it atomically to its final path.

    Files that other code put into an older checkpoint of that name, or into a folder that it created
    beforehand, are kept; files written by Trainers are removed.
    """
    close(checkpoint)
    place(checkpoint)


def close(checkpoint: str | Path, save: Save | None = None) -> None:
    """Seal a complete checkpoint, so that only the renaming remains.

    Args:
        checkpoint: where it shall appear.
        save: where others have their part of it on other disks.
    """
    final, folder = Path(checkpoint), partial_of(checkpoint)
    if final.is_dir():
        _keep_what_others_wrote(final, folder)
    seal(folder, save)


def place(checkpoint: str | Path) -> None:
    """Rename a sealed checkpoint to its final path."""
    final = Path(checkpoint)
    # Other code may have written more files during the sealing.
    put(partial_of(final), final, partial(_keep_in_sealed, newer=final))


def put(new: Path, place: Path, adopt: Callable[[Path], object] | None = None) -> None:
    """Rename a path to its final one; an existing one is removed only after the renaming succeeds.

    Args:
        new: a file or a folder in the same directory as `place`.
        place: its final path.
        adopt: called with the existing folder before it is removed.
    """
    older = beside(place, REPLACED)
    if os.path.lexists(place):
        delete(older)
        place.rename(older)
    try:
        new.rename(place)
    except OSError:
        if os.path.lexists(older):
            older.rename(place)
        raise
    flush(place.parent)
    if adopt is not None and older.is_dir():
        adopt(older)
    delete(older)


def delete(path: Path) -> None:
    """Delete a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(checkpoint: str | Path) -> None:
    """Discard a checkpoint that is being written."""
    delete(partial_of(checkpoint))


def remove(checkpoint: str | Path) -> None:
    """Remove a checkpoint atomically, so that it is never visible in part."""
    doomed = beside(checkpoint, REMOVED)
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        Path(checkpoint).rename(doomed)
    except OSError:
        # A failed removal must not end a run.
        doomed = Path(checkpoint)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: str | Path, agreed: Collection[str] | None = None) -> list[str]:
    """Remove what a killed run has left behind, and rename checkpoints that are already sealed.

    Args:
        folder: the folder that holds the checkpoints.
        agreed: if a job has several disks, the names of the checkpoints that are sealed on all of them; only
            these are renamed. None if this disk decides alone.

    Returns:
        One sentence for each folder, on what was done.
    """
    done = []
    # Partial checkpoints come first, because one may replace an older one.
    for path in sorted(Path(folder).glob("_*-checkpoint-*")) if Path(folder).is_dir() else ():
        found = _LEFTOVER.fullmatch(path.name)
        if found is None or not path.is_dir():
            continue
        kind, final = found[1], path.with_name(found[2])
        # A folder without a state was created by a callback before its checkpoint.
        is_written = kind == PARTIAL and not (final / STATE).exists() and _is_sealed(path)
        if kind == PARTIAL and agreed is not None:
            is_written = final.name in agreed
        if is_written or (kind == REPLACED and not final.exists()):
            put(path, final, partial(_keep_in_sealed, newer=final))
            done.append(f"`{path}`: left behind by a run that was killed, and whole; now `{final.name}`.")
        else:
            if kind == REPLACED:
                _keep_in_sealed(path, final)
            shutil.rmtree(path, ignore_errors=True)
            done.append(f"`{path}`: left behind by a run that was killed; removed.")
    return done


def sealed_partials(folder: str | Path) -> dict[str, Save]:
    """Return the sealed, not yet renamed saves to several disks in a folder: name → save."""
    found = {}
    for path in Path(folder).glob(f"{PARTIAL}checkpoint-*"):
        if (save := saved_as(path)) is not None and _is_sealed(path):
            found[path.name.removeprefix(PARTIAL)] = save
    return found


@contextlib.contextmanager
def writing(checkpoint: str | Path) -> Iterator[None]:
    """Report why a checkpoint cannot be written, and remove the partial one.

    Raises:
        CheckpointError: the disk, the folder or its permissions prevent the writing.
    """
    try:
        yield
    except BaseException as caught:
        discard(checkpoint)
        error = cause_of(caught)
        if not is_of_the_disk(error):
            raise
        msg = (
            f"`{checkpoint}`: not saved ({type(error).__name__}: {error}). Nothing of it is kept, earlier "
            "checkpoints are as they were. See to the space and the permissions of the folder, and resume "
            "from the last checkpoint."
        )
        raise CheckpointError(msg) from caught


def cause_of(error: BaseException) -> BaseException:
    """Return the cause of torch's error for shards: the error of the first failed process."""
    if not isinstance(error, CheckpointException):
        return error
    causes: list[BaseException] = [cause for cause, _ in error.failures.values()]
    return causes[0]


def is_of_the_disk(error: BaseException) -> bool:
    """Whether the disk, the folder or its permissions prevent the writing."""
    if isinstance(error, CheckpointError):
        return False
    by_torch = isinstance(error, RuntimeError) and _TORCH_CANNOT_WRITE.search(str(error)) is not None
    return by_torch or isinstance(error, (OSError, SafetensorError, shutil.Error))


def beside(checkpoint: str | Path, prefix: str) -> Path:
    """Return a path in the same folder whose name has a prefix."""
    path = Path(checkpoint)
    return path.with_name(prefix + path.name)


def _is_sealed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and not any(differences(folder))


def _keep_what_others_wrote(older: Path, newer: Path) -> bool:
    """Copy other code's files from one folder to another; return whether there were any."""
    try:
        sealed = read(older)
    except MANIFEST_ERRORS:
        sealed = {}
    kept = False
    for name in files_of(older):
        is_ours = name in sealed or is_one_of(name, TRAINERS)
        if not is_ours and not (newer / name).exists():
            (newer / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(older / name, newer / name)
            kept = True
    return kept


def _keep_in_sealed(older: Path, newer: Path) -> None:
    if (newer / MANIFEST).is_file() and _keep_what_others_wrote(older, newer):
        reseal(newer)
