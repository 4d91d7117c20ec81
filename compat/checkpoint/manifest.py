"""The manifest of a checkpoint: its files, their sizes and digests."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compat.checkpoint.counting import listener
from compat.checkpoint.digests import CURRENT, algorithm_of
from compat.checkpoint.flushing import Traits, current_flusher, flush, flush_and_digest, traits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from compat.checkpoint.digests import Algorithm
    from compat.checkpoint.flushing import Flusher

MANIFEST = "compat_manifest.json"
"""The name of the manifest. It is written last: a folder that has it is complete."""

MANIFEST_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""The errors that reading a damaged manifest may raise."""

MISSING = "missing"
"""The description of a missing file."""

FORMAT = 1
_CHUNK = 1 << 20
_THREADS = 4


@dataclass(frozen=True)
class Save:
    """A save to the disks of several hosts, each of which holds a part.

    Attributes:
        id: equal in all parts of the save, and unique to it.
        processes: the number of processes that wrote it.
    """

    id: str
    processes: int


def seal(folder: str | Path, save: Save | None = None) -> None:
    """Flush all files of a folder to its disk, and write its manifest.

    Files that this thread's flusher has flushed and that have not changed since are not read again.

    Args:
        folder: a checkpoint to which nothing will be added.
        save: the save, if other disks hold other parts of it.
    """
    root = Path(folder)
    (root / MANIFEST).unlink(missing_ok=True)
    names, flusher = list(files_of(root)), current_flusher()
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _flushed(root / name, flusher), names)
        entries = dict(zip(names, found, strict=True))
    _write(root, entries, save)
    for parent in {root, *((root / name).parent for name in names)}:
        flush(parent)


def reseal(folder: str | Path, known: Mapping[str, Traits] | None = None) -> None:
    """Update the manifest of a sealed folder, reading only the files that have changed since.

    A callback may add files to a checkpoint, or remove some, when it is notified of the save.

    Args:
        folder: a sealed one.
        known: the traits of its files when it was sealed; if None, files older than the manifest count as
            unchanged.
    """
    root = Path(folder)
    sealed = (root / MANIFEST).stat().st_mtime_ns
    before, save = _parsed(root)
    now = list(files_of(root))

    def is_as_it_was(name: str) -> bool:
        if known is not None:
            return known.get(name) == traits(root / name)
        return traits(root / name)[-1] < sealed

    entries = {
        name: before[name] if name in before and is_as_it_was(name) else _flushed(root / name) for name in now
    }
    if entries != before:
        _write(root, entries, save)
        flush(root)


def read(folder: str | Path) -> dict[str, Any]:
    """Read the entries of a manifest.

    Returns:
        Path within the folder, with `/` → size in bytes, and the digest under the name of its algorithm.

    Raises:
        MANIFEST_ERRORS: the manifest is missing or damaged.
    """
    return _parsed(Path(folder))[0]


def saved_as(folder: str | Path) -> Save | None:
    """Return the save to several disks that a folder belongs to; None if none, or if not sealed."""
    try:
        return _parsed(Path(folder))[1]
    except MANIFEST_ERRORS:
        return None


def _parsed(root: Path) -> tuple[dict[str, Any], Save | None]:
    written = (root / MANIFEST).read_bytes()
    content = json.loads(written)
    entries: dict[str, Any] = content["files"]
    save = Save(**content["save"]) if "save" in content else None
    if written != _serialised(entries, save) or not all(map(_is_entry, entries.items())):
        msg = "it was changed since it was written"
        raise ValueError(msg)
    return entries, save


def differences(folder: str | Path, only: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield the differences from the manifest.

    Args:
        folder: a sealed one.
        only: the files to check; all if None.

    Yields:
        The file, and the description of its problem; for `MANIFEST` itself if it is damaged.
    """
    root = Path(folder)
    try:
        entries = read(root)
    except MANIFEST_ERRORS as error:
        yield MANIFEST, f"damaged ({error})"
        return
    names = [name for name in entries if only is None or name in only]
    tell = listener()
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _compared(root, name, entries[name], tell), names)
        yield from ((name, wrong) for name, wrong in zip(names, found, strict=True) if wrong)


def files_of(root: Path) -> Iterator[str]:
    """Yield every file of a folder except the manifest, by its path within the folder."""
    for parent, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name).relative_to(root).as_posix()
            if path != MANIFEST:
                yield path


def _flushed(file: Path, flusher: Flusher | None = None) -> dict[str, Any]:
    early = None if flusher is None else flusher.digest_of(file)
    return {"size": file.stat().st_size, CURRENT.name: early or flush_and_digest(file)}


def _compared(root: Path, name: str, entry: dict[str, Any], tell: Callable[[int], object]) -> str:
    file = root / name
    if not file.is_file():
        return MISSING
    if (size := file.stat().st_size) != entry["size"]:
        return f"{size} bytes, and {entry['size']} were written"
    algorithm = algorithm_of(entry)
    is_as_written = _digest(file, algorithm, tell) == entry[algorithm.name]
    return "" if is_as_written else "its content was changed since it was written"


def _digest(file: Path, algorithm: Algorithm, tell: Callable[[int], object]) -> str:
    digest = algorithm.new()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            tell(len(chunk))
    return str(digest.hexdigest())


def _write(root: Path, entries: dict[str, Any], save: Save | None) -> None:
    # Written atomically, because the folder may already be visible.
    draft = root / f"{MANIFEST}.new"
    draft.write_bytes(_serialised(entries, save))
    flush(draft)
    draft.replace(root / MANIFEST)


def _is_entry(item: tuple[str, Any]) -> bool:
    name, entry = item
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return is_inside and isinstance(entry, dict) and "size" in entry and algorithm_of(entry) is not None


def _serialised(entries: dict[str, Any], save: Save | None) -> bytes:
    """Serialize a manifest in canonical form, with its own digest, so that any changed byte is detected."""
    body = json.dumps(entries, indent=1)
    of_save = "" if save is None else f'"save": {json.dumps(asdict(save))}, '
    digest = hashlib.sha256((of_save + body).encode()).hexdigest()
    return f'{{"format": {FORMAT}, "sha256": "{digest}", {of_save}"files": {body}}}\n'.encode()
