"""The import finder that maps `trl` to this package."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING

from typing_extensions import override

from compat.trl.detect.release import OURS
from compat.trl.detect.usage import TRL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def install_importer() -> None:
    """Make `import trl` find this package in the current process. Idempotent."""
    if not any(isinstance(finder, _Importer) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Importer(_unload()))


def uninstall_importer() -> None:
    """Undo `install_importer`: `import trl` finds the previous modules again."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _Importer)]:
        sys.meta_path.remove(finder)
        _unload()
        sys.modules.update(finder.before)


def _unload() -> dict[str, ModuleType]:
    """Remove TRL's modules from `sys.modules` and return them by name."""
    names = [name for name in sys.modules if name == TRL or name.startswith(f"{TRL}.")]
    return {name: sys.modules.pop(name) for name in names}


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `trl` and its modules in this package: the same module objects under a second name.

    Args:
        before: the modules that had these names.
    """

    def __init__(self, before: dict[str, ModuleType]) -> None:
        self.before = before

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TRL and not fullname.startswith(f"{TRL}."):
            return None
        if importlib.util.find_spec(OURS + fullname.removeprefix(TRL)) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(OURS + spec.name.removeprefix(TRL))
        spec.loader_state = module.__spec__
        return module

    @override
    def exec_module(self, module: ModuleType) -> None:
        # The import system has overwritten the spec. The module itself is already executed.
        spec = module.__spec__
        if spec is not None and spec.loader_state is not None:
            module.__spec__ = spec.loader_state
