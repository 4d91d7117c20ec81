from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

import compat
from compat.errors import UpstreamError
from compat.trainer.legacy.methods import LegacyMethods
from compat.upstream.private import PRIVATE, resolve

INSTALLED = Version(transformers.__version__)


def concerns_installed(seen: tuple[str, ...]) -> bool:
    """Whether the installed transformers is at least the first release, and of a line up to the last one."""
    releases = [Version(each.split()[1]) for each in seen if each.startswith("transformers ")]
    return not releases or (min(releases) <= INSTALLED and INSTALLED.major <= max(releases).major)


def is_there(where: str) -> bool:
    """Whether the library of a name is installed; DeepSpeed is in environments of its own."""
    return importlib.util.find_spec(where.partition(":")[0].partition(".")[0]) is not None


@pytest.mark.parametrize(
    "where", [name.where for name in PRIVATE if concerns_installed(name.seen) and is_there(name.where)]
)
def test_every_private_name_is_where_it_was_seen(where: str) -> None:
    resolve(where)  # which raises where it has moved; some are None on the class


def test_a_name_that_moved_is_reported() -> None:
    with pytest.raises(UpstreamError, match=r"`transformers:Trainer._gone` has moved"):
        resolve("transformers:Trainer._gone")


def test_what_instances_no_longer_have_is_reported() -> None:
    with pytest.raises(UpstreamError, match="instances no longer have it"):
        resolve("transformers.trainer:Trainer#_gone")


LISTED = {re.split("[.#:]", name.where)[-1] for name in PRIVATE}
PUBLIC = {"_replace", "_asdict", "_fields"}  # of every named tuple
LOOKUPS = {"getattr", "setattr", "hasattr", "delattr"}
FILES = {
    file: ast.parse(file.read_text(encoding="utf-8")) for file in Path(compat.__file__).parent.rglob("*.py")
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def used(node: ast.AST) -> list[str]:
    """The private names that one node reads, sets, looks up or imports from elsewhere."""
    names: list[str] = []
    if isinstance(node, ast.Attribute):
        names = [node.attr]
    elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] != "compat":
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOKUPS:
        name = node.args[1]
        names = [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
    return [name for name in names if is_private(name)]


def defined(node: ast.AST) -> list[str]:
    """The names that one node gives to something of our own."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr] if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else []
    return []


def test_every_private_name_that_we_use_is_listed_or_our_own() -> None:
    own = {name for tree in FILES.values() for node in ast.walk(tree) for name in defined(node)}
    foreign = {
        f"{file.name}:{node.lineno}: {name}"  # type: ignore[attr-defined]
        for file, tree in FILES.items()
        for node in ast.walk(tree)
        for name in used(node)
        if name not in own | LISTED | PUBLIC
    }
    assert foreign == set(), "list them in compat/upstream/private.py"


def test_every_private_method_that_we_override_is_listed() -> None:
    marked = {
        method.name
        for tree in FILES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef)
        if any(isinstance(mark, ast.Name) and mark.id == "override" for mark in method.decorator_list)
    }
    # Whatever decorates it, and also where a seam of ours has the name of a method of HF's.
    trainers = {
        name
        for kind in compat.Trainer.__mro__
        if kind.__module__.startswith("compat.") and kind is not LegacyMethods  # which comes after HF's
        for name in vars(kind)
        if name in vars(transformers.Trainer)
    }
    overridden = {name for name in marked | trainers if is_private(name)}
    assert "_evaluate" in overridden
    assert overridden - LISTED == set()


def test_the_check_finds_each_way_to_use_a_name() -> None:
    tree = ast.parse("from a import _b\nx._c\nx._d = 1\ngetattr(x, '_e')\nx.__f__\nx.g")
    assert {name for node in ast.walk(tree) for name in used(node)} == {"_b", "_c", "_d", "_e"}


def test_each_name_is_listed_once() -> None:
    places = [name.where for name in PRIVATE]
    assert len(places) == len(set(places))


def test_lightning_is_of_a_release_that_was_seen() -> None:
    assert importlib.metadata.version("lightning").startswith("2.")
