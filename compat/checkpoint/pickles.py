"""Detects what a pickle would run, without running it."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import sys
import tarfile
import zipfile
from typing import IO, TYPE_CHECKING, Any

from compat.checkpoint.safe_unpickler import Inert, InertUnpickler
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HARMLESS = re.compile(
    r"""
    collections\.(OrderedDict|defaultdict|deque|Counter) | _codecs\.encode
    | (builtins|__builtin__)\.(set|frozenset|list|dict|tuple|int|float|complex|bool|str|bytes|bytearray
        |slice|range|object)
    | copyreg\._reconstructor | copy_reg\._reconstructor
    | datetime\.(timedelta|datetime|date|time|timezone)
    | pathlib\.\w*Path | uuid\.UUID
    | decimal\.Decimal | fractions\.Fraction | types\.SimpleNamespace
    | torch\.(Size|device|dtype|Generator|Tensor|\w*Storage)
    | torch\._utils\._rebuild_\w+ | torch\._tensor\._rebuild_\w+
    | torch\.serialization\._get_layout | deepspeed\.utils\.tensor_fragment\.fragment_address
    | torch\.distributed\._tensor\.\w+\.[A-Z]\w* | torch\.distributed\.tensor\.\w+\.[A-Z]\w*
    | (numpy|numpy\._?core\.(multiarray|numeric)|numpy\.random\._pickle)\.
        (_reconstruct|ndarray|dtype|scalar|_frombuffer|__\w+_ctor|__bit_generator_ctor)
    | numpy\.dtypes\.\w+
    """,
    re.VERBOSE,
)
"""Functions that a pickle may call in addition to the classes of libraries: they only build values."""

LOADED_WHOLE = re.compile(
    r"""
    torch\.(u?int|b?float|complex|bool|q\w+)\w*
    | torch\.distributed\.checkpoint\.(metadata|planner|filesystem)\._?[A-Z]\w*
    | torch\.distributed\.(_shard|_?tensor)(\.\w+)*\._?[A-Z]\w*
    | deepspeed\.runtime\.(fp16\.loss_scaler|zero\.\w+|config|base_optimizer)\.[A-Z]\w*
    | transformers\.(trainer_utils|training_args)\.[A-Z]\w*
    """,
    re.VERBOSE,
)
"""Further names in torch's and DeepSpeed's own shards. Their libraries unpickle these, so they may contain no
other class."""

_ARCHIVE = b"PK\x03\x04"
"""The first bytes of a zip archive. torch checks only these; an archive may also be appended to another
file."""

_PROGRAM = "constants.pkl"
"""The entry that marks an archive as a TorchScript program."""

_LEGACY_PICKLES = 5
"""The number of pickles in torch's format before 1.6, which are followed by raw data."""


def named_in(path: str | Path, part: IO[bytes] | None = None) -> dict[str, bool]:
    """Return the classes and functions that a torch file, or a bare pickle, names.

    Args:
        path: a zip archive with a `data.pkl`, or pickles.
        part: a part of the file that is such a one; all of it if None.

    Returns:
        `module.name` of each, and whether loading the file would call it.

    Raises:
        CheckpointError: the file is neither.
    """
    names: dict[str, bool] = {}
    try:
        with open(path, "rb") if part is None else contextlib.nullcontext(part) as file:
            is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
            file.seek(0)
            if is_archive:
                _load_archive(file, names)
            else:
                _refuse_tar(file)
                _load_row(file, names)
    except OSError:
        raise
    except Exception as error:
        # The content of a pickle decides which error is raised.
        msg = f"`{path}`: no pickle that torch would have written ({type(error).__name__}: {error})."
        raise CheckpointError(msg) from error
    return names


def refuse_code(path: str | Path, part: IO[bytes] | None = None, *, is_loaded_whole: bool = True) -> None:
    """Refuse a pickle that would run code, without loading it.

    Args:
        path: a zip archive with a `data.pkl`, or pickles.
        part: a part of the file that is such a one; all of it if None.
        is_loaded_whole: whether a library will unpickle it, so that only known names are allowed. A file that
            is loaded weights-only, or never, may also contain classes of libraries.

    Raises:
        CheckpointError: names the file and what it would call; or the file is neither kind.
    """
    found = named_in(path, part).items()
    if harmful := sorted(
        name for name, is_called in found if not _is_harmless(name, is_called, is_loaded_whole)
    ):
        msg = (
            f"`{path}`: a pickle that names {', '.join(harmful)}, and so could run any code. "
            "Don't load it, and ask whoever gave it to you."
        )
        raise CheckpointError(msg)


def refused_class(error: Exception) -> str:
    """Return the class for which torch refused to load a pickle as plain data; empty if there is none.

    Args:
        error: torch's error.
    """
    is_refusal = isinstance(error, pickle.UnpicklingError)
    found = re.search(r"(?:GLOBAL|global) (\S+)", str(error)) if is_refusal else None
    return found[1] if found else ""


def with_entry(path: str | Path, named: str) -> str:
    """Return a class with the entry that holds it, as in ``a.Projector (`param_groups[0]['projector']`)``.

    Args:
        path: a torch archive; in any other file, the entry is unknown.
        named: the `module.name` of the class.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if os.path.basename(name) == "data.pkl")
            with archive.open(member) as content:
                entry = next(_entries(InertUnpickler(content).load(), named), "")
    except Exception:  # noqa: BLE001 (a pickle's own words decide what fails, and how)
        entry = ""
    return f"{named} (`{entry}`)" if entry else named


def _entries(value: Any, named: str, path: str = "") -> Iterator[str]:
    """Yield the paths of the objects of a class in a tree of plain data."""
    if isinstance(value, Inert) and value.named == named:
        yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        yield from _entries(item, named, f"{path}[{key!r}]" if path else str(key))


def _is_harmless(name: str, is_called: bool, is_loaded_whole: bool) -> bool:
    """Whether a pickle may name something: functions that only build values, and uncalled library names."""
    if HARMLESS.fullmatch(name):
        return True
    if is_loaded_whole:
        return LOADED_WHOLE.fullmatch(name) is not None
    module, _, attribute = name.rpartition(".")
    # A dotted name can reach through one module into another.
    root = module.partition(".")[0]
    is_library = ":" not in name and root not in (*sys.stdlib_module_names, "__builtin__", "nt")
    is_class = attribute.lstrip("_")[:1].isupper()
    return is_library and (is_class or not is_called)


def _load_archive(file: IO[bytes], names: dict[str, bool]) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [name for name in archive.namelist() if os.path.basename(name) == "data.pkl"]
        if not members:
            msg = "it holds no data.pkl"
            raise pickle.UnpicklingError(msg)
        if any(os.path.basename(name) == _PROGRAM for name in archive.namelist()):
            msg = "it is a program of TorchScript"
            raise pickle.UnpicklingError(msg)
        for member in members:
            with archive.open(member) as content:
                InertUnpickler(content, names).load()


def _refuse_tar(file: IO[bytes]) -> None:
    """Refuse torch's format before 0.2, which can begin like a pickle and whose members torch unpickles."""
    is_tar = tarfile.is_tarfile(file)
    file.seek(0)
    if is_tar:
        msg = "it is a tar archive"
        raise pickle.UnpicklingError(msg)


def _load_row(file: IO[bytes], names: dict[str, bool]) -> None:
    """Scan a pickle, or the sequence of pickles that torch wrote before it used archives."""
    for _ in range(_LEGACY_PICKLES):
        InertUnpickler(file, names).load()
        start = file.tell()
        if not file.read(1):
            return
        file.seek(start)
