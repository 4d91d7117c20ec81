"""Which era of TRL a script is of: what it imports, passes and calls, held against what is installed.

`compat run` asks `lacking` before it runs a script, and has `stand_in` put this package in TRL's place where
the installed release no longer has what the script uses, and 0.7.11 had.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

THEIRS = "trl"
OURS = "compat.trl"

_ABSENT = object()


@dataclass(frozen=True, order=True)
class Use:
    """Something of TRL's that a script uses.

    Attributes:
        path: the dotted name behind `trl.`: "core.LengthSampler".
        keyword: an argument that it is called with, if that is what is used.
        member: an attribute of what it makes, if that is what is used.
    """

    path: str
    keyword: str = ""
    member: str = ""

    def __str__(self) -> str:
        if self.keyword:
            return f"{self.path}({self.keyword}=...)"
        return f"{self.path}.{self.member}" if self.member else self.path


@dataclass
class _Names:
    """What names of a file stand for.

    Attributes:
        imported: name → the dotted path behind `trl`, empty for `trl` itself.
        made: name → the path of the class that it is an instance of.
    """

    imported: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    def path(self, node: ast.AST) -> str | None:
        """The path that an expression stands for, None where it is none of TRL's."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id)
        if isinstance(node, ast.Attribute) and (base := self.path(node.value)) is not None:
            return f"{base}.{node.attr}".lstrip(".")
        return None


def uses(source: str, filename: str = "<script>") -> set[Use]:
    """What a script uses of TRL: names it imports, arguments it passes, members of what it makes.

    Args:
        source: the script's text.
        filename: for errors.
    """
    try:
        tree = ast.parse(source, filename)
    except SyntaxError:  # Python itself tells of it, when the script is run
        return set()
    names = _Names()
    found = set(_imports(tree, names))
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            kind = names.path(node.value.func)
            targets = (target.id for target in node.targets if isinstance(target, ast.Name))
            names.made.update(dict.fromkeys(targets, kind) if kind else {})
    for node in nodes:
        found.update(_of_node(node, names))
    return {use for use in found if use.path}


def _imports(tree: ast.AST, names: _Names) -> Iterator[Use]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root, _, rest = alias.name.partition(".")
                if root == THEIRS:
                    names.imported[alias.asname or root] = rest if alias.asname else ""
                    yield Use(rest)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            root, _, rest = (node.module or "").partition(".")
            if root == THEIRS:
                for alias in node.names:
                    path = f"{rest}.{alias.name}".strip(".*")
                    names.imported[alias.asname or alias.name] = path
                    yield Use(path)


def _of_node(node: ast.AST, names: _Names) -> Iterator[Use]:
    if isinstance(node, ast.Attribute):
        if (path := names.path(node)) is not None:
            yield Use(path)
        if isinstance(node.value, ast.Name) and (made := names.made.get(node.value.id)):
            yield Use(made, member=node.attr)
    elif isinstance(node, ast.Call) and (path := names.path(node.func)):
        for argument in node.keywords:
            if argument.arg:
                yield Use(path, keyword=argument.arg)


def uses_of_files(paths: Iterable[str]) -> set[Use]:
    """What files use of TRL, and the modules beside them that they import.

    Args:
        paths: of Python files.
    """
    waiting, seen, found = [os.path.abspath(path) for path in paths], set[str](), set[Use]()
    while waiting:
        path = waiting.pop()
        if path in seen or not os.path.isfile(path):
            continue
        seen.add(path)
        with open(path, "rb") as file:
            source = file.read().decode("utf-8", errors="replace")
        found |= uses(source, path)
        waiting.extend(_beside(source, path))
    return found


def _beside(source: str, path: str) -> Iterator[str]:
    """Files in the folder of `path` that it imports by their names."""
    try:
        tree = ast.parse(source, path)
    except SyntaxError:
        return
    folder = os.path.dirname(path)
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or alias.name for alias in node.names]
        for module in modules:
            place = os.path.join(folder, *module.split("."))
            yield from (f"{place}.py", os.path.join(place, "__init__.py"))


def lacking(wanted: Iterable[Use], root: str) -> list[Use]:
    """Those uses that a package has no answer to.

    Args:
        wanted: what is used.
        root: the package, "trl" or "compat.trl".
    """
    return sorted(use for use in wanted if not _serves(root, use))


def _serves(root: str, use: Use) -> bool:
    found = _find(root, use.path)
    if found is _ABSENT:
        return False
    if use.member and isinstance(found, type):
        # What a constructor sets is not seen from without: only what some release has as a method counts.
        return hasattr(found, use.member) or not _is_method_of_ours(use)
    return not use.keyword or _takes(found, use.keyword)


def _find(root: str, path: str) -> Any:
    """What a dotted name stands for, modules imported on the way."""
    try:
        found: Any = importlib.import_module(root)
    except ImportError:
        return _ABSENT
    at = root
    for name in filter(None, path.split(".")):
        at = f"{at}.{name}"
        value = _attribute(found, name)
        if value is _ABSENT:
            try:
                value = importlib.import_module(at)
            except Exception:  # noqa: BLE001 (a release that cannot be loaded does not serve)
                return _ABSENT
        found = value
    return found


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, _ABSENT)
    except Exception:  # noqa: BLE001 (lazy modules raise whatever their import does)
        return _ABSENT


def _is_method_of_ours(use: Use) -> bool:
    return hasattr(_find(OURS, use.path), use.member)


def _takes(function: Any, keyword: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return anything or keyword in parameters


def release() -> str:
    """The installed TRL, in words."""
    try:
        return f"TRL {importlib.metadata.version(THEIRS)}"
    except importlib.metadata.PackageNotFoundError:
        return "this environment, without TRL,"


def is_of_ours(wanted: set[Use]) -> list[Use]:
    """What of these uses the installed TRL lacks, if TRL 0.7.11 has them all; else nothing.

    Of what lies in something that is gone, only the latter is named.

    Args:
        wanted: what is used.
    """
    if not wanted:
        return []
    missing = lacking(wanted, THEIRS)
    if not missing or lacking(wanted, OURS):
        return []
    gone = {use.path for use in missing if use == Use(use.path)}
    return [use for use in missing if not _is_within(use, gone)]


def _is_within(use: Use, gone: set[str]) -> bool:
    """Whether something that holds it is gone already."""
    parents = {use.path[:at] for at, letter in enumerate(use.path) if letter == "."}
    return bool(parents & gone) or (use != Use(use.path) and use.path in gone)


def stand_in() -> None:
    """Have `import trl` find this package, in this process and from now on. Idempotent."""
    if not any(isinstance(finder, _StandIn) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StandIn(_taken_out()))


def stand_down() -> None:
    """Undo `stand_in`: `import trl` finds what it found before."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _StandIn)]:
        sys.meta_path.remove(finder)
        _taken_out()
        sys.modules.update(finder.before)


def _taken_out() -> dict[str, ModuleType]:
    """The loaded modules of that name, which are no longer among the loaded ones."""
    names = [name for name in sys.modules if name == THEIRS or name.startswith(f"{THEIRS}.")]
    return {name: sys.modules.pop(name) for name in names}


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `trl` and its modules in this package: the same modules, under another name as well.

    Args:
        before: the modules that had those names.
    """

    def __init__(self, before: dict[str, ModuleType]) -> None:
        self.before = before

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != THEIRS and not fullname.startswith(f"{THEIRS}."):
            return None
        if importlib.util.find_spec(OURS + fullname.removeprefix(THEIRS)) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(OURS + spec.name.removeprefix(THEIRS))
        spec.loader_state = module.__spec__
        return module

    @override
    def exec_module(self, module: ModuleType) -> None:
        # The import system has put its own there; the module is loaded already.
        spec = module.__spec__
        if spec is not None and spec.loader_state is not None:
            module.__spec__ = spec.loader_state
