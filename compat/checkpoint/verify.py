"""Verifies that a checkpoint is complete, unchanged and safe to load."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from compat.checkpoint.counting import tell
from compat.checkpoint.deepspeed_files import LATEST, UNIVERSAL
from compat.checkpoint.layout import (
    ADAPTER_FILES,
    ADAPTERS,
    INCOMPLETE,
    LOADED_WEIGHTS_ONLY,
    PICKLES,
    STATE,
    WEIGHTS,
    ZERO_FILES,
    ZERO_FOLDERS,
    Lacks,
    is_one_of,
    leaves_folder,
)
from compat.checkpoint.manifest import (
    MANIFEST,
    MANIFEST_ERRORS,
    MISSING,
    Save,
    differences,
    files_of,
    read,
    saved_as,
)
from compat.checkpoint.pickles import refuse_code
from compat.checkpoint.ranks import OF_RANDOM_NUMBERS, missing_of_ranks
from compat.checkpoint.shapes import OF_JSON, OF_PICKLES, wrong_in_json, wrong_in_pickle
from compat.checkpoint.shards import METADATA, wrong_in_shards
from compat.errors import CheckpointError

Check = Callable[[Path], "str | Lacks"]

INDEX = ".index.json"

_ARCHIVE = b"PK\x03\x04"
_CHUNK = 1 << 20
_TORCHS = (".bin", ".ckpt", ".pt", ".pth")
_ROW = ".distcp"
"""Suffix of files that are concatenated archives, whose offsets are in their `.metadata`."""

_UNKNOWN_TYPE = re.compile(r"unknown variant `(\w+)`")
_WAY_OUT = (
    f"; to go on with other random numbers, remove every {' and '.join(OF_RANDOM_NUMBERS)} and {MANIFEST} "
    "from the checkpoint"
)
_INTERRUPTED = "HF was interrupted while it wrote this checkpoint"


@dataclasses.dataclass(frozen=True)
class Report:
    """The findings on a checkpoint, or on its part on one disk.

    Attributes:
        names: its files.
        is_sealed: whether it has a manifest.
        save: the save to several disks that the manifest records.
        changes: file → its difference from the manifest.
        contents: file → the problem of its content.
    """

    names: frozenset[str]
    is_sealed: bool = False
    save: Save | None = None
    changes: tuple[tuple[str, str], ...] = ()
    contents: tuple[tuple[str, str | Lacks], ...] = ()


def problems(
    folder: str | Path,
    *,
    needs_weights: bool = True,
    weights_only: bool = False,
    is_fresh: bool = False,
    processes: int | None = None,
) -> list[str]:
    """What keeps a checkpoint from being loaded.

    A checkpoint that `compat` has written is checked against its manifest, byte for byte. HF's own
    checkpoints have none: their files must exist, and be readable as the kind of file that their names
    indicate. No pickle is loaded for that.

    Args:
        folder: a `checkpoint-N` folder.
        needs_weights: whether the weights must be at the paths of HF's own Trainer.
        weights_only: whether only weights will be loaded.
        is_fresh: whether the manifest was written just now, so that bytes need not be checked.
        processes: how many will load it, each with its own random state; None if none is loaded.

    Returns:
        A phrase for each problem, which begins with the file; empty if the checkpoint is intact.
    """
    root = Path(folder)
    if weights_only:
        found = judged([looked_at(root, _is_weights)], needs_state=False, needs_weights=False)
    else:
        found = judged([looked_at(root, is_fresh=is_fresh)], needs_weights=needs_weights, processes=processes)
    return [f"`{name}`: {wrong}" for _, name, wrong in found]


def looked_at(root: Path, only: Callable[[str], bool] = lambda _: True, *, is_fresh: bool = False) -> Report:
    """Read a folder, and check each file against the manifest and against its name.

    Args:
        root: a `checkpoint-N` folder, or a part of one.
        only: selects the files to check.
        is_fresh: as for `problems`.
    """
    names, is_sealed = frozenset(files_of(root)), (root / MANIFEST).exists()
    asked = {name for name in {*names, *sealed(root)} if only(name)}
    return Report(
        names,
        is_sealed,
        saved_as(root),
        tuple(differences(root, asked)) if is_sealed and not is_fresh else (),
        tuple(_contents(root, names & asked)),
    )


def judged(
    reports: Sequence[Report],
    *,
    needs_state: bool = True,
    needs_weights: bool = True,
    processes: int | None = None,
) -> Iterator[tuple[int | None, str, str]]:
    """Yield the problems that prevent loading a checkpoint, of which each disk may have a part.

    Args:
        reports: one for each disk that has a part of it.
        needs_state: whether the run is resumed.
        needs_weights: whether the weights must lie where HF's own Trainer has them.
        processes: as for `problems`.

    Yields:
        The index of the report (None if no report has the file), the file, and the problem.
    """
    there = frozenset[str]().union(*(report.names for report in reports))
    for index, report in enumerate(reports):
        yield from (
            (index, name, wrong) for name, wrong in report.changes if not _is_made_up(name, wrong, there)
        )
    if needs_state and STATE not in there:
        yield None, STATE, "missing, which is written last: the checkpoint was not written to its end"
    if needs_state and INCOMPLETE in there:
        yield None, INCOMPLETE, _INTERRUPTED
    if needs_weights and not any(is_one_of(name, WEIGHTS) for name in there):
        yield None, WEIGHTS[0], "missing, and no weights of another format are there"
    if needs_state:
        yield from ((None, name, wrong) for name, wrong in _of_saves(reports, there, processes))
    for index, report in enumerate(reports):
        for name, found in report.contents:
            if wrong := found.within(name, there) if isinstance(found, Lacks) else found:
                yield index, name, wrong


def _of_saves(
    reports: Sequence[Report], there: Collection[str], processes: int | None
) -> Iterator[tuple[str, str]]:
    """Yield the signs that parts belong to different saves, or that the part of a disk is missing."""
    saves = {report.save for report in reports if report.is_sealed}
    if len(saves) > 1:
        yield MANIFEST, "the parts on the disks of this job were not saved together"
        return
    save = next(iter(saves), None)
    if save is None and all(report.is_sealed for report in reports):
        # Files copied to a disk are in its manifest.
        return
    written = 0 if save is None else save.processes
    for name, wrong in missing_of_ranks(there, written):
        is_of_random_numbers = is_one_of(name, OF_RANDOM_NUMBERS)
        # Only the same number of processes can resume from these.
        if not (is_of_random_numbers and written and processes not in (None, written)):
            yield name, wrong + (_WAY_OUT if is_of_random_numbers else "")


def damage(path: str | Path) -> list[str]:
    """Return the signs that a checkpoint of any form has changed since it was written.

    For a checkpoint that is read but not resumed from: its reader reports missing files and unsafe content.
    Archives are also detected by their content, since an index may give them any name.

    Args:
        path: a folder, or a Lightning file.

    Returns:
        A phrase for each problem, which begins with the file.
    """
    root = Path(path)
    found = _damage(root) if root.is_dir() else [(str(root), str(_checked(_of_archive, root)))]
    return [f"`{name}`: {wrong}" for name, wrong in found if wrong]


def _damage(root: Path) -> Iterator[tuple[str, str]]:
    names, vouched_for = set(files_of(root)), sealed(root)
    if (root / MANIFEST).exists():
        yield from _changes(root)
    if INCOMPLETE in names:
        yield INCOMPLETE, _INTERRUPTED
    found = _contents(root, names, (_of_json, _of_safetensors, _of_archive, _of_shape))
    yield from ((name, wrong) for name, wrong in found if isinstance(wrong, str))
    for name in sorted(names - set(vouched_for)):
        is_unknown = not is_one_of(name, PICKLES) and _is_torchs(root / name)
        if is_unknown and (wrong := _checked(_of_archive, root / name)):
            yield name, str(wrong)


def _is_torchs(file: Path) -> bool:
    """Whether a file begins like an archive, and is a torch archive as far as it can be read."""
    if file.suffix == _ROW:
        return False
    try:
        with open(file, "rb") as stream:
            if stream.read(len(_ARCHIVE)) != _ARCHIVE:
                return False
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return file.suffix in _TORCHS


def check_sums(file: Path | IO[bytes]) -> None:
    """Read an archive, and check each of its members against its checksum.

    Args:
        file: a zip archive, or a part of a file that is one.

    Raises:
        BadZipFile: a checksum differs, or the file is no archive. Reading may raise other errors.
    """
    # torch's reader checks the directory more strictly, but no checksums.
    torch._C.PyTorchFileReader(str(file) if isinstance(file, Path) else file)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as content:
                while chunk := content.read(_CHUNK):
                    tell(len(chunk))


def _contents(
    root: Path, names: Collection[str], only: Collection[Check] | None = None
) -> Iterator[tuple[str, str | Lacks]]:
    vouched_for = sealed(root)
    for name in sorted(names):
        for pattern, check, always in CHECKS:
            is_due = (always or name not in vouched_for) and (only is None or check in only)
            if not is_due or not is_one_of(name, pattern):
                continue
            if wrong := _checked(check, root / name):
                yield name, wrong
                break


def _checked(check: Check, file: Path) -> str | Lacks:
    try:
        return check(file)
    except CheckpointError as error:
        return str(error).partition(": ")[2]
    except Exception as error:  # noqa: BLE001 (whatever a file's content does to its reader speaks against it)
        return f"not readable ({type(error).__name__}: {error})"


def _changes(root: Path) -> Iterator[tuple[str, str]]:
    there = frozenset(files_of(root))
    for name, wrong in differences(root):
        if not _is_made_up(name, wrong, there):
            yield name, wrong


def _is_made_up(name: str, wrong: str, there: Collection[str]) -> bool:
    """Whether a file missing from a manifest exists elsewhere: on another disk, or in another format.

    Weights may have been sharded, merged or converted to another format since; an adapter's weights remain in
    its folder.
    """
    if wrong != MISSING:
        return False
    if name in there:
        return True
    if is_one_of(name, ADAPTERS):
        return any(PurePosixPath(name).with_name(file).as_posix() in there for file in ADAPTER_FILES)
    return _is_weights(name) and any(is_one_of(one, WEIGHTS) for one in there)


def sealed(root: Path) -> Collection[str]:
    """Return the files in the manifest of a folder; none if it has no manifest."""
    try:
        return read(root).keys()
    except MANIFEST_ERRORS:
        return ()


def _is_weights(name: str) -> bool:
    return is_one_of(name, (*WEIGHTS, "model-*.safetensors", "pytorch_model-*.bin"))


def _of_json(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return f"no JSON, or cut short ({error})"
    return wrong_in_json(file.name, text)


def _of_state(file: Path) -> str:
    """Describe why the installed HF cannot load the file as a `TrainerState`."""
    known = {field.name for field in dataclasses.fields(TrainerState)}
    unknown = sorted(json.loads(file.read_text(encoding="utf-8")).keys() - known)
    later = "which the installed transformers does not know: a later release has written it"
    return f"its entry `{unknown[0]}`, {later}" if unknown else ""


def _of_shape(file: Path) -> str:
    return wrong_in_pickle(file.name, file)


def _of_safetensors(file: Path) -> str:
    try:
        with safe_open(file, framework="pt"):
            return ""
    except (OSError, SafetensorError) as error:
        if unknown := _UNKNOWN_TYPE.search(str(error)):
            return f"a tensor is of the type {unknown[1]}, which the installed safetensors does not know"
        return f"no safetensors, or cut short ({error})"


def _of_archive(file: Path) -> str:
    if not zipfile.is_zipfile(file):
        # Before 1.6, torch wrote a sequence of pickles.
        with open(file, "rb") as stream:
            return "" if stream.read(1) == b"\x80" else "empty, cut short, or nothing that torch has written"
    try:
        check_sums(file)
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"cut short or damaged ({str(error).partition('. ')[0]})"
    return ""


def _of_plain_pickle(file: Path) -> str:
    refuse_code(file, is_loaded_whole=False)
    return ""


def _of_whole_pickle(file: Path) -> str:
    refuse_code(file)
    return ""


def _of_index(file: Path) -> str | Lacks:
    text = file.read_text(encoding="utf-8")
    if wrong := wrong_in_json(file.name, text):
        return f"no index of weights: {wrong}"
    shards = sorted(set(json.loads(text)["weight_map"].values()))
    if outside := [shard for shard in shards if leaves_folder(shard)]:
        return f"it names {outside[0]!r}, which is outside of the checkpoint"
    missing = tuple(shard for shard in shards if not (file.parent / shard).is_file())
    return Lacks(missing) if missing else ""


def _of_shards(file: Path) -> str | Lacks:
    return wrong_in_shards(file.parent)


def _of_pointer(file: Path) -> str | Lacks:
    name = file.read_text(encoding="utf-8").strip()
    if leaves_folder(name) or os.sep in name:
        return f"it names {name!r}, which is outside of the checkpoint"
    if not is_one_of(name, ZERO_FOLDERS):
        # DeepSpeed would unpickle its files, which are found by the names of its folders.
        return f"it names {name!r}, which is no folder that a Trainer has had DeepSpeed write"
    return "" if (file.parent / name).is_dir() else Lacks((name,))


CHECKS: tuple[tuple[tuple[str, ...], Check, bool], ...] = (
    ((f"*{INDEX}",), _of_index, True),
    ((LATEST, UNIVERSAL), _of_pointer, True),
    (tuple(OF_JSON), _of_json, True),
    (("*.json",), _of_json, False),
    ((STATE,), _of_state, True),
    (("*.safetensors", "*/*.safetensors"), _of_safetensors, False),
    ((*LOADED_WEIGHTS_ONLY, *ZERO_FILES), _of_archive, False),
    (LOADED_WEIGHTS_ONLY, _of_plain_pickle, True),
    (ZERO_FILES, _of_whole_pickle, True),
    ((f"*/{METADATA}",), _of_shards, True),
    (tuple(OF_PICKLES), _of_shape, True),
)
"""File patterns → how they are checked, and whether they are checked even if the manifest matches."""
