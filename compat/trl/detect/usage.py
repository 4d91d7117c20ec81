"""Finds the names, arguments and members of TRL that the source of a script uses."""

from __future__ import annotations

import ast
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TRL = "trl"
"""The import name of TRL."""

# An import under such a condition, or inside a `try` with such a handler, is optional.
_CONDITIONS = re.compile(r"(?<![a-z])version|is_\w+_available|TYPE_CHECKING", re.IGNORECASE)
_ERRORS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}

# The first argument of PPOTrainer is `config` in 0.7, and `args` in later releases, which take at least
# this many positional arguments.
_PPO_IS_NEW_FROM = 7


@dataclass(frozen=True, order=True)
class Use:
    """One use of TRL: a name, an argument of its call, or a member of its instances.

    Attributes:
        path: the dotted name relative to `trl`, for example "core.LengthSampler".
        keyword: the argument, empty for other uses.
        member: the attribute of an instance, empty for other uses.
        others: paths of other classes that the instance may have.
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
    """A class of TRL or of the script.

    Attributes:
        path: the path of TRL's class or base class, empty if there is none.
        own: the members defined by the script.
    """

    path: str
    own: frozenset[str] = frozenset()


@dataclass
class _Names:
    """The meaning of the names in a file. Names in `made` and `keys` may be dotted.

    Attributes:
        imported: name → its path relative to `trl`, empty for `trl` itself.
        classes: name → a class of the script.
        made: name → the possible classes of its value.
        keys: name → the possible keys of a dictionary.
    """

    imported: dict[str, str] = field(default_factory=dict)
    classes: dict[str, _Kind] = field(default_factory=dict)
    made: dict[str, set[_Kind]] = field(default_factory=lambda: defaultdict(set))
    keys: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def path(self, node: ast.AST) -> str | None:
        """Return the path of an expression; None if it is not a name of TRL."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id)
        if isinstance(node, ast.Attribute) and (base := self.path(node.value)) is not None:
            return f"{base}.{node.attr}".lstrip(".")
        return None

    def kind(self, node: ast.AST) -> _Kind | None:
        """Return the class or function of an expression."""
        if isinstance(node, ast.Name) and node.id in self.classes:
            return self.classes[node.id]
        path = self.path(node)
        return _Kind(path) if path else None

    def called(self, function: ast.expr) -> set[_Kind]:
        """Return the classes or functions behind a called expression."""
        if isinstance(function, ast.Attribute) and function.attr == "__init__" and _is_super(function.value):
            return self.instances(function.value)
        kind = self.kind(function)
        return {kind} if kind else set()

    def instances(self, node: ast.expr) -> set[_Kind]:
        """Return the possible classes of the value of an expression."""
        if isinstance(node, ast.Call) and not _is_super(node):
            return self.called(node.func)
        return self.made.get(_text(node), set())

    def passed(self, call: ast.Call) -> set[str]:
        """Return the keywords of a call, including those of `**` arguments."""
        named = {keyword.arg for keyword in call.keywords if keyword.arg}
        return named.union(*(self.words(keyword.value) for keyword in call.keywords if not keyword.arg))

    def words(self, node: ast.expr) -> set[str]:
        """Return the literal keys of a dictionary."""
        if isinstance(node, ast.Dict):
            named = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            spread = (self.words(value) for key, value in zip(node.keys, node.values, strict=True) if not key)
            return {key for key in named if isinstance(key, str)}.union(*spread)
        if isinstance(node, ast.Call):
            return self.passed(node) if _text(node.func) == "dict" else set()
        return self.keys.get(_text(node), set())


def _text(node: ast.AST) -> str:
    """Return the source of a name, a dotted name or `super()`; empty for other expressions."""
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) or _is_super(node) else ""


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def uses(source: str, filename: str = "<script>", package: str = TRL) -> set[Use]:
    """Return the uses of TRL in a script: imported names, passed arguments, members of instances.

    Args:
        source: the text of the script.
        filename: its name in error messages.
        package: the import name of TRL.
    """
    try:
        tree = ast.parse(source, filename)
    except SyntaxError:  # Python reports it when the script runs
        return set()
    names = _Names()
    found = set(_imports(tree, names, package))
    nodes = sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0))
    for bind in (_bind_class, _bind_value):
        for node in nodes:
            bind(node, names)
    for node in nodes:
        found.update(_of_node(node, names))
    return {use for use in found if use.path}


def _imports(tree: ast.AST, names: _Names, package: str) -> Iterator[Use]:
    optional = {inner for node in ast.walk(tree) if _is_guard(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in optional:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                root, _, rest = alias.name.partition(".")
                if root == package:
                    names.imported[alias.asname or root] = rest if alias.asname else ""
                    yield Use(rest)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            root, _, rest = (node.module or "").partition(".")
            if root == package:
                for alias in node.names:
                    path = f"{rest}.{alias.name}".strip(".*")
                    names.imported[alias.asname or alias.name] = path
                    yield Use(path)


def _is_guard(node: ast.AST) -> bool:
    """Whether the imports inside a statement are optional."""
    if isinstance(node, ast.If):
        return bool(_CONDITIONS.search(ast.unparse(node.test)))
    return isinstance(node, ast.Try) and any(map(_forgives, node.handlers))


def _forgives(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches import errors and does not raise another one."""
    caught = {_text(inner) for inner in ast.walk(handler.type)} if handler.type else _ERRORS
    return bool(caught & _ERRORS) and not isinstance(handler.body[-1], ast.Raise)


def _bind_class(node: ast.AST, names: _Names) -> None:
    if isinstance(node, ast.ClassDef):
        base = _base(node, names)
        names.classes[node.name] = replace(base, own=base.own | _own(node))


def _base(node: ast.ClassDef, names: _Names) -> _Kind:
    """Return the union of the base classes."""
    kinds = [kind for kind in map(names.kind, node.bases) if kind]
    path = next((kind.path for kind in kinds if kind.path), "")
    return _Kind(path, frozenset[str]().union(*(kind.own for kind in kinds)))


def _own(node: ast.ClassDef) -> set[str]:
    """Return the methods and fields of a class, and the attributes set by its methods."""
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
    """Yield the uses of the base class in the body of a class."""
    base = _base(node, names)
    scope = {"self": names.classes[node.name], "super()": base, f"super({node.name}, self)": base}
    inside = replace(names, made={**names.made, **{name: {kind} for name, kind in scope.items()}})
    for child in ast.iter_child_nodes(node):
        for inner in ast.walk(child):
            yield from _of_node(inner, inside)


def uses_of_files(paths: Iterable[str]) -> set[Use]:
    """Return the uses of TRL in files and in the modules imported from their folders.

    Args:
        paths: Python files.
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
    """Yield the possible files of the modules imported from the folder of `path`."""
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
