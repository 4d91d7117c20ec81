"""Names of a package that are loaded from its modules on first access."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from compat.upstream.required import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def lazily(
    package: str,
    homes: Mapping[str, Iterable[str]],
    modules: Iterable[str],
    needing_diffusers: Callable[[str], bool],
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__all__`, `__getattr__` and `__dir__` of a package.

    Args:
        package: the name of the package.
        homes: module of the package → the names that the package exports from it.
        modules: the modules that the package itself exports.
        needing_diffusers: whether TRL has a name only if diffusers is installed; otherwise `import *` omits
            it.
    """
    home_of = {name: home for home, names in homes.items() for name in names} | {m: m for m in modules}
    has_diffusers = importlib.util.find_spec("diffusers") is not None
    public = sorted(
        name for names in homes.values() for name in names if has_diffusers or not needing_diffusers(name)
    )

    def get(name: str) -> Any:
        if name not in home_of:
            msg = f"module {package!r} has no attribute {name!r}; TRL 0.7.11 has no such name"
            raise AttributeError(msg)
        require()
        module = importlib.import_module(f"{package}.{home_of[name]}")
        value = module if name == home_of[name] else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public, *modules})

    return public, get, names
