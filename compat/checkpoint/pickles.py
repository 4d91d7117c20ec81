"""What a pickle would run, found without running it."""

from __future__ import annotations

import os
import pickle
import re
import sys
import zipfile
from typing import IO, TYPE_CHECKING, Any

from compat.checkpoint.inert import InertUnpickler
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
    | datetime\.(timedelta|datetime|date|time|timezone) | pathlib\.\w*Path | uuid\.UUID
    | decimal\.Decimal | fractions\.Fraction | types\.SimpleNamespace
    | torch\.(Size|device|dtype|Generator) | torch\._utils\._rebuild_\w+ | torch\._tensor\._rebuild_\w+
    | torch\.serialization\._get_layout
    | torch\.distributed\._tensor\.\w+\.[A-Z]\w* | torch\.distributed\.tensor\.\w+\.[A-Z]\w*
    | (numpy|numpy\._?core\.(multiarray|numeric)|numpy\.random\._pickle)\.
        (_reconstruct|ndarray|dtype|scalar|_frombuffer|__\w+_ctor|__bit_generator_ctor)
    | numpy\.dtypes\.\w+ | deepspeed\.utils\.tensor_fragment\.fragment_address
    """,
    re.VERBOSE,
)
"""What a pickle may call beside the classes of libraries: these build values, and do nothing else."""

_LEGACY_PICKLES = 5
"""torch's form before 1.6 is a row of so many pickles, and raw data after them."""


def named_in(path: str | Path) -> dict[str, bool]:
    """The classes and functions that a file of torch's, or a bare pickle, names.

    Args:
        path: a zip archive with a `data.pkl`, or pickles.

    Returns:
        `module.name` of each, and whether loading the file would call it.

    Raises:
        CheckpointError: the file cannot be read as either.
    """
    names: dict[str, bool] = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in _members(archive):
                    with archive.open(member) as file:
                        InertUnpickler(file, names).load()
        else:
            with open(path, "rb") as file:
                _load_row(file, names)
    except OSError:
        raise
    except Exception as error:
        # A pickle's own words decide what fails, and how.
        msg = f"`{path}`: no pickle that torch would have written ({type(error).__name__}: {error})."
        raise CheckpointError(msg) from error
    return names


def refuse_code(path: str | Path) -> None:
    """Refuse a pickle that would run code, without loading it.

    Args:
        path: a zip archive with a `data.pkl`, or pickles.

    Raises:
        CheckpointError: the file and what it would call; or the file is no such thing.
    """
    found = named_in(path).items()
    if harmful := sorted(name for name, is_called in found if not _is_harmless(name, is_called)):
        msg = (
            f"`{path}`: a pickle that names {', '.join(harmful)}, and so could run any code. "
            "Don't load it, and ask whoever gave it to you."
        )
        raise CheckpointError(msg)


def _is_harmless(name: str, is_called: bool) -> bool:
    """Whether a pickle may name something: what only builds a value, and, uncalled, what a library has."""
    if HARMLESS.fullmatch(name):
        return True
    module, _, attribute = name.rpartition(".")
    is_library = module.partition(".")[0] not in (*sys.stdlib_module_names, "__builtin__", "nt")
    is_class = attribute.lstrip("_")[:1].isupper()
    return is_library and (is_class or not is_called)


def _members(archive: zipfile.ZipFile) -> Iterator[str]:
    names = [name for name in archive.namelist() if os.path.basename(name) == "data.pkl"]
    if not names:
        msg = "it holds no data.pkl"
        raise pickle.UnpicklingError(msg)
    yield from names


def _load_row(file: IO[bytes], names: dict[str, bool]) -> Any:
    """Scan one pickle, or the row that torch wrote before it wrote archives."""
    first = InertUnpickler(file, names).load()
    if isinstance(first, int):
        for _ in range(_LEGACY_PICKLES - 1):
            InertUnpickler(file, names).load()
    return first
