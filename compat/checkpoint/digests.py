"""The algorithms by which the files of a checkpoint are compared with what was written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Algorithm:
    """A digest.

    Attributes:
        name: the entry of a manifest that holds it, in hexadecimal digits.
        new: returns an object as those of `hashlib`, which releases the GIL while it reads a large buffer.
    """

    name: str
    new: Callable[[], Any]


# It detects damage, not forgery: whoever can change a file can change the manifest as well.
CURRENT = Algorithm("xxh3_128", xxhash.xxh3_128)
"""The algorithm for what is written, at the speed of memory: ten times as fast as SHA-256."""

ALGORITHMS = {each.name: each for each in (CURRENT, Algorithm("sha256", hashlib.sha256))}
"""The algorithms of manifests; earlier versions of `compat` have used the others."""


def algorithm_of(entry: dict[str, Any]) -> Algorithm:
    """Return the algorithm of a manifest's entry for a file.

    Raises:
        ValueError: it has none, or one that this version does not know.
    """
    names = entry.keys() - {"size"}
    if len(names) != 1 or not names <= ALGORITHMS.keys():
        msg = f"digest {sorted(names)}: this version of compat knows {', '.join(ALGORITHMS)}"
        raise ValueError(msg)
    return ALGORITHMS[names.pop()]
