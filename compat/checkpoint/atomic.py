"""A checkpoint appears whole or not at all: it is written beside its place, and then renamed."""

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

from compat.checkpoint.layout import STATE, TRAINERS, is_one_of
from compat.checkpoint.manifest import (
    MANIFEST,
    MANIFEST_ERRORS,
    differences,
    files_of,
    flush,
    read,
    reseal,
    saved_as,
    seal,
)
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from compat.checkpoint.manifest import Save

# HF takes what begins with `checkpoint-` for a checkpoint, and uploads nothing that begins with `_`.
PARTIAL, REPLACED, REMOVED = "_partial-", "_replaced-", "_removed-"
"""What stands before the name of a checkpoint that is being written, replaced by a new one, or removed."""

_LEFTOVER = re.compile(rf"({PARTIAL}|{REPLACED}|{REMOVED})(checkpoint-\d+)")

_TORCH_CANNOT_WRITE = re.compile(
    r"PytorchStreamWriter|inline_container|unexpected pos|cannot be opened|iostream error"
)


def partial_of(checkpoint: str | Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return beside(checkpoint, PARTIAL)


def begin(checkpoint: str | Path) -> Path:
    """Make an empty folder in which a checkpoint can be written.

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
    """Have a checkpoint that is written to its end appear in its place, on the disk and all at once.

    What others have put into an older checkpoint of that name stays, or into a folder that they have made
    ahead of it; what Trainers have put there goes.
    """
    close(checkpoint)
    place(checkpoint)


def close(checkpoint: str | Path, save: Save | None = None) -> None:
    """Seal a checkpoint that is written to its end, so that it lacks only its name.

    Args:
        checkpoint: where it shall appear.
        save: where others have their part of it on other disks.
    """
    final, folder = Path(checkpoint), partial_of(checkpoint)
    if final.is_dir():
        _keep_what_others_wrote(final, folder)
    seal(folder, save)


def place(checkpoint: str | Path) -> None:
    """Give a checkpoint that is sealed its name."""
    final = Path(checkpoint)
    # Sealing takes its time, in which others may have written more.
    put(partial_of(final), final, partial(_keep_in_sealed, newer=final))


def put(new: Path, place: Path, adopt: Callable[[Path], object] | None = None) -> None:
    """Rename what was written to its place; what lies there goes once that is done, and stays otherwise.

    Args:
        new: a file or a folder beside its place.
        place: where it shall lie.
        adopt: given the folder that lay there, before it goes.
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
    """Delete a file, a link or a folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(checkpoint: str | Path) -> None:
    """Give up a checkpoint that is being written."""
    delete(partial_of(checkpoint))


def remove(checkpoint: str | Path) -> None:
    """Remove a checkpoint, so that nobody ever sees half of it."""
    doomed = beside(checkpoint, REMOVED)
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        Path(checkpoint).rename(doomed)
    except OSError:
        # What cannot be removed must not end a run.
        doomed = Path(checkpoint)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: str | Path, agreed: Collection[str] | None = None) -> list[str]:
    """Clear away what a run that was killed has left behind, and bring to its end what lacked only its name.

    Args:
        folder: the one that holds the checkpoints.
        agreed: the names of those that are sealed on all disks of a job, where it has several: these get
            their place, and no others. None where this disk decides alone.

    Returns:
        What was done, a sentence for each left-over.
    """
    done = []
    # A partial one comes first, for it may take the place of a replaced one.
    for path in sorted(Path(folder).glob("_*-checkpoint-*")) if Path(folder).is_dir() else ():
        found = _LEFTOVER.fullmatch(path.name)
        if found is None or not path.is_dir():
            continue
        kind, final = found[1], path.with_name(found[2])
        # A folder without a state is one that a callback has made ahead of its checkpoint.
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
    """The saves to several disks that lack only their names in a folder, by these."""
    found = {}
    for path in Path(folder).glob(f"{PARTIAL}checkpoint-*"):
        if (save := saved_as(path)) is not None and _is_sealed(path):
            found[path.name.removeprefix(PARTIAL)] = save
    return found


@contextlib.contextmanager
def writing(checkpoint: str | Path) -> Iterator[None]:
    """Say clearly what keeps a checkpoint from being written, and leave nothing of it.

    Raises:
        CheckpointError: the disk, the folder or its permissions are in the way.
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
    """What torch's error of shards stands for: that of the first process that has failed."""
    if not isinstance(error, CheckpointException):
        return error
    causes: list[BaseException] = [cause for cause, _ in error.failures.values()]
    return causes[0]


def is_of_the_disk(error: BaseException) -> bool:
    """Whether the disk, the folder or its permissions keep something from being written."""
    if isinstance(error, CheckpointError):
        return False
    by_torch = isinstance(error, RuntimeError) and _TORCH_CANNOT_WRITE.search(str(error)) is not None
    return by_torch or isinstance(error, (OSError, SafetensorError, shutil.Error))


def beside(checkpoint: str | Path, prefix: str) -> Path:
    """What lies in the same folder, under the same name with something before it."""
    path = Path(checkpoint)
    return path.with_name(prefix + path.name)


def _is_sealed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and not any(differences(folder))


def _keep_what_others_wrote(older: Path, newer: Path) -> bool:
    """Copy it from one folder to another, and tell whether there was any."""
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
