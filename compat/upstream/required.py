"""The oldest releases that work, as pyproject.toml declares them, and one error for what is older."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import TYPE_CHECKING

from compat.errors import DependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Written out, since a checkout on `sys.path` has no metadata of its own to read it from.
REQUIRED = {
    "accelerate": "1.15",
    "datasets": "2.21",
    "jsonargparse": "4.48",
    "lightning": "2.6",
    "lightning-utilities": "0.12",
    "numpy": "2.0",
    "rich": "13",
    "safetensors": "0.4.3",
    "torch": "2.6",
    "torchmetrics": "1.2.1",
    "transformers": "4.53",
    "typing-extensions": "4.12",
    "xxhash": "3.2",
}
"""Distribution → its oldest release that works."""


@functools.cache
def require() -> None:
    """Check what is installed, before an import fails for a reason that names no release.

    A distribution without metadata is passed over: whether it is there is for its import to say.

    Raises:
        DependencyError: a dependency is too old: which release is installed, which is needed, what to run.
    """
    old = dict(_too_old())
    if not old:
        return
    installed = ", ".join(f"`{name}=={version}`" for name, version in old.items())
    needed = " and ".join(f"{name} {REQUIRED[name]} or newer" for name in old)
    pinned = " ".join(f"'{name}>={REQUIRED[name]}'" for name in old)
    it = "it" if len(old) == 1 else "them"
    msg = f"{installed}: compat needs {needed}. Install {it}: pip install {pinned}"
    raise DependencyError(msg)


def _too_old() -> Iterator[tuple[str, str]]:
    from packaging.version import Version

    for name, oldest in REQUIRED.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        # Builds of vendors call themselves a pre-release of what they have: 2.6.0a0+nv25.
        if Version(Version(installed).base_version) < Version(oldest):
            yield name, installed
