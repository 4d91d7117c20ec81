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
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

THEIRS = "trl"
OURS = "compat.trl"

_ABSENT = object()

# What a script that imports something under such a condition, or in spite of such an error, can do without.
_CONDITIONS = re.compile(r"(?<![a-z])version|is_\w+_available|TYPE_CHECKING", re.IGNORECASE)
_ERRORS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}

# PPO's settings come first in either era: as `config` in 0.7, as `args` of this many or more since.
_PPO_IS_NEW_FROM = 7


@dataclass(frozen=True, order=True)
class Use:
    """Something of TRL's that a script uses.

    Attributes:
        path: the dotted name behind `trl.`: "core.LengthSampler".
        keyword: an argument that it is called with, if that is what is used.
        member: an attribute of what it makes, if that is what is used.
        others: the paths of what else may have made the object whose member it is.
    """

    path: str
    keyword: str = ""
    member: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.keyword:
            return f"{self.path}({self.keyword}=...)"
        return f"{self.path}.{self.member}" if self.member else self.path


@dataclass(frozen=True)
class _Kind:
    """A class of TRL's, or a script's own.

    Attributes:
        path: of TRL's class that it is or is derived from, empty where there is none.
        own: the members that the script itself defines.
    """

    path: str
    own: frozenset[str] = frozenset()


@dataclass
class _Names:
    """What names of a file stand for. Other than for imports and classes, a name may be a dotted one.

    Attributes:
        imported: name → the dotted path behind `trl`, empty for `trl` itself.
        classes: name → a class of the script's.
        made: name → the classes that it may be an instance of.
        keys: name → the keys of the dictionaries that it may be.
    """

    imported: dict[str, str] = field(default_factory=dict)
    classes: dict[str, _Kind] = field(default_factory=dict)
    made: dict[str, set[_Kind]] = field(default_factory=lambda: defaultdict(set))
    keys: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def path(self, node: ast.AST) -> str | None:
        """The path that an expression stands for, None where it is none of TRL's."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id)
        if isinstance(node, ast.Attribute) and (base := self.path(node.value)) is not None:
            return f"{base}.{node.attr}".lstrip(".")
        return None

    def kind(self, node: ast.AST) -> _Kind | None:
        """The class (or function) that an expression stands for."""
        if isinstance(node, ast.Name) and node.id in self.classes:
            return self.classes[node.id]
        path = self.path(node)
        return _Kind(path) if path else None

    def called(self, function: ast.expr) -> set[_Kind]:
        """What a call of this expression is a call of."""
        if isinstance(function, ast.Attribute) and function.attr == "__init__" and _is_super(function.value):
            return self.instances(function.value)
        kind = self.kind(function)
        return {kind} if kind else set()

    def instances(self, node: ast.expr) -> set[_Kind]:
        """The classes that an expression may be an instance of."""
        if isinstance(node, ast.Call) and not _is_super(node):
            return self.called(node.func)
        return self.made.get(_text(node), set())

    def passed(self, call: ast.Call) -> set[str]:
        """The keywords of a call, those behind two stars among them."""
        named = {keyword.arg for keyword in call.keywords if keyword.arg}
        return named.union(*(self.words(keyword.value) for keyword in call.keywords if not keyword.arg))

    def words(self, node: ast.expr) -> set[str]:
        """The keys of a dictionary, as far as they can be read."""
        if isinstance(node, ast.Dict):
            named = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            spread = (self.words(value) for key, value in zip(node.keys, node.values, strict=True) if not key)
            return {key for key in named if isinstance(key, str)}.union(*spread)
        if isinstance(node, ast.Call):
            return self.passed(node) if _text(node.func) == "dict" else set()
        return self.keys.get(_text(node), set())


def _text(node: ast.AST) -> str:
    """A name, a dotted name or `super()`, as it is written; empty for anything else."""
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) or _is_super(node) else ""


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


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
    nodes = sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0))
    for bind in (_bind_class, _bind_value):
        for node in nodes:
            bind(node, names)
    for node in nodes:
        found.update(_of_node(node, names))
    return {use for use in found if use.path}


def _imports(tree: ast.AST, names: _Names) -> Iterator[Use]:
    dispensable = {inner for node in ast.walk(tree) if _is_guard(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in dispensable:
            continue
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


def _is_guard(node: ast.AST) -> bool:
    """Whether a script goes on without what is imported in there."""
    if isinstance(node, ast.If):
        return bool(_CONDITIONS.search(ast.unparse(node.test)))
    return isinstance(node, ast.Try) and any(map(_forgives, node.handlers))


def _forgives(handler: ast.ExceptHandler) -> bool:
    """Whether an import that fails is caught, and not only to say it in other words."""
    caught = {_text(inner) for inner in ast.walk(handler.type)} if handler.type else _ERRORS
    return bool(caught & _ERRORS) and not isinstance(handler.body[-1], ast.Raise)


def _bind_class(node: ast.AST, names: _Names) -> None:
    if isinstance(node, ast.ClassDef):
        base = _base(node, names)
        names.classes[node.name] = replace(base, own=base.own | _own(node))


def _base(node: ast.ClassDef, names: _Names) -> _Kind:
    """What the classes that it is derived from are together."""
    kinds = [kind for kind in map(names.kind, node.bases) if kind]
    path = next((kind.path for kind in kinds if kind.path), "")
    return _Kind(path, frozenset[str]().union(*(kind.own for kind in kinds)))


def _own(node: ast.ClassDef) -> set[str]:
    """What a class defines itself: methods, fields, and what its methods set."""
    methods = {
        entry.name for entry in node.body if isinstance(entry, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    targets = {_text(target) for entry in node.body for target in _targets(entry)}
    stored = {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute)
        and isinstance(inner.ctx, ast.Store)
        and _text(inner.value) == "self"
    }
    return methods | targets | stored


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, (ast.AnnAssign, ast.NamedExpr)) else []


def _bind_value(node: ast.AST, names: _Names) -> None:
    value: ast.expr | None = getattr(node, "value", None)
    for target in filter(None, map(_text, _targets(node))):
        if value is not None:
            names.made[target] |= names.instances(value)
            names.keys[target] |= names.words(value)


def _of_node(node: ast.AST, names: _Names) -> Iterator[Use]:
    if isinstance(node, ast.Attribute):
        yield from _of_attribute(node, names)
    elif isinstance(node, ast.Call):
        yield from _of_call(node, names)
    elif isinstance(node, ast.ClassDef):
        yield from _of_class(node, names)


def _of_attribute(node: ast.Attribute, names: _Names) -> Iterator[Use]:
    if (path := names.path(node)) is not None:
        yield Use(path)
    kinds = names.instances(node.value)
    if not any(node.attr in kind.own for kind in kinds):
        paths = {kind.path for kind in kinds if kind.path}
        for path in paths:
            yield Use(path, member=node.attr, others=tuple(sorted(paths - {path})))


def _of_call(node: ast.Call, names: _Names) -> Iterator[Use]:
    for kind in names.called(node.func):
        if "__init__" not in kind.own:
            keywords = names.passed(node) - kind.own
            if kind.path.endswith("PPOTrainer") and _begins_with_config(node, names):
                keywords.add("config")
            yield from (Use(kind.path, keyword=keyword) for keyword in keywords)


def _begins_with_config(node: ast.Call, names: _Names) -> bool:
    first = names.instances(node.args[0]) if 0 < len(node.args) < _PPO_IS_NEW_FROM else set[_Kind]()
    return any(kind.path.endswith("PPOConfig") for kind in first)


def _of_class(node: ast.ClassDef, names: _Names) -> Iterator[Use]:
    """What a class uses of the one it is derived from."""
    base = _base(node, names)
    scope = {"self": names.classes[node.name], "super()": base, f"super({node.name}, self)": base}
    inside = replace(names, made={**names.made, **{name: {kind} for name, kind in scope.items()}})
    for child in ast.iter_child_nodes(node):
        for inner in ast.walk(child):
            yield from _of_node(inner, inside)


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
        made = [found, *(_find(root, path) for path in use.others)]
        # What a constructor sets is not seen from without: only what 0.7.11 has as a method or field counts.
        return any(_has(kind, use.member) for kind in made) or not _is_seen_in_ours(use)
    return not use.keyword or _takes(found, use.keyword)


def _has(kind: Any, member: str) -> bool:
    return hasattr(kind, member) or _is_field(kind, member)


def _is_field(kind: Any, member: str) -> bool:
    return member in getattr(kind, "__dataclass_fields__", ())


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


def _is_seen_in_ours(use: Use) -> bool:
    kind = _find(OURS, use.path)
    return callable(getattr(kind, use.member, None)) or _is_field(kind, use.member)


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
    return sorted({replace(use, others=()) for use in missing if not _is_within(use, gone)})


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
