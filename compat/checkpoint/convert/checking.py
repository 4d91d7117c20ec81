"""Checks a checkpoint before it is converted: a damaged one must not become one that looks intact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.checkpoint.convert import dcp
from compat.checkpoint.manifest import MANIFEST
from compat.checkpoint.shards import METADATA
from compat.checkpoint.verify import damage, sealed
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def refuse_damage(root: Path) -> None:
    """Check a checkpoint against its manifest, or against the checksums inside its files.

    All of it is read once, and nothing is kept in memory; the listener is called with the number of bytes.

    Args:
        root: a file, or the folder that holds everything that is read.

    Raises:
        CheckpointError: a file is damaged, was changed, or is missing.
    """
    if wrong := damage(root):
        way_out = "Copy it again, whole, or give another checkpoint."
        if (root / MANIFEST).exists():
            way_out += f" Where a change was meant, delete `{MANIFEST}` from the folder."
        # The description of the problem already names the file.
        where = f"`{root}`: it is damaged, or was changed since it was written: " if root.is_dir() else ""
        msg = f"{where}{'; '.join(wrong)}. {way_out}"
        raise CheckpointError(msg)
    vouched_for = sealed(root)
    for metadata in sorted((*root.glob(METADATA), *root.glob(f"*/{METADATA}"))):
        if metadata.relative_to(root).as_posix() not in vouched_for:
            dcp.check(metadata.parent)


def size_of(root: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = (root,) if root.is_file() else (path for path in root.rglob("*") if path.is_file())
    return sum(file.stat().st_size for file in files)
