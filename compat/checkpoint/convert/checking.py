"""What is read is checked first: a checkpoint that is damaged must not become one that looks whole."""

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
    """Hold a checkpoint against its manifest, or against the checksums that its files have in themselves.

    All of it is read once, and nothing is kept; whoever listens is told of the bytes.

    Args:
        root: a file, or the folder of everything that is read.

    Raises:
        CheckpointError: a file is damaged, was changed, or is missing.
    """
    if wrong := damage(root):
        way_out = "Copy it again, whole, or give another checkpoint."
        if (root / MANIFEST).exists():
            way_out += f" Where a change was meant, delete `{MANIFEST}` from the folder."
        # A file is named by what is wrong with it.
        where = f"`{root}`: it is damaged, or was changed since it was written: " if root.is_dir() else ""
        msg = f"{where}{'; '.join(wrong)}. {way_out}"
        raise CheckpointError(msg)
    vouched_for = sealed(root)
    for metadata in sorted((*root.glob(METADATA), *root.glob(f"*/{METADATA}"))):
        if metadata.relative_to(root).as_posix() not in vouched_for:
            dcp.check(metadata.parent)


def size_of(root: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = (root,) if root.is_file() else (path for path in root.rglob("*") if path.is_file())
    return sum(file.stat().st_size for file in files)
