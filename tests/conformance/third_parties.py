"""Lists what libraries that build on HF's Trainer use of it and of accelerate, from their sources.

Run it as ``python -m tests.conformance.third_parties [library ...]``: it prints ``file:line: kind name`` for
each use, with who serves it, and ends with status 1 if one is served by nobody. The libraries are read, never
imported.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import transformers
import transformers.trainer
import transformers.trainer_seq2seq

from compat.upstream.third_parties import SERVED

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARIES = ("trl", "sentence_transformers", "setfit")
"""Libraries whose trainers are tested as their own."""

OBJECTS = {
    "accelerator": "accelerator",
    "distributed_state": "process",
    "PartialState": "process",
    "AcceleratorState": "state",
}
"""A name, an attribute or a class → the kind of what is used of it. `accelerator.state` is one of its own."""

MENTIONED = re.compile("accelerat|[tT]rainer")
"""What a source says that uses anything of theirs."""

NOT_ACCELERATES = "torch"
"""Whose `accelerator` is another thing."""


@dataclass(frozen=True)
class Use:
    """A name that a library uses.

    Args:
        kind: of what: a key of `SERVED`.
        name: the attribute, or `module:name` of an import.
        library: its distribution and version.
        file: where, below the library's folder.
        line: in that file.
    """

    kind: str
    name: str
    library: str
    file: str
    line: int

    @property
    def is_served(self) -> bool:
        """Whether a table says who serves it."""
        return self.name in SERVED[self.kind]

    def __str__(self) -> str:
        return f"{self.library}, {self.file}:{self.line}: {self.kind} {self.name}"


def installed() -> list[str]:
    """Those of the libraries that are there."""
    return [library for library in LIBRARIES if importlib.util.find_spec(library) is not None]


def uses_of(library: str) -> Iterator[Use]:
    """Every use in a library's sources.

    Args:
        library: the name that it is imported by.
    """
    spec = importlib.util.find_spec(library)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    version = f"{library} {importlib.metadata.version(library.replace('_', '-'))}"
    for file in sorted(root.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        for kind, name, line in found_in(source) if MENTIONED.search(source) else ():
            yield Use(kind, name, version, f"{library}/{file.relative_to(root)}", line)


def found_in(source: str) -> list[tuple[str, str, int]]:
    """Kind, name and line of every use in one source, in the order of its lines."""
    tree = ast.parse(source)
    found = {*_imports(tree), *_attributes(tree), *_on_trainers(tree)}
    return sorted(found, key=lambda use: (use[2], use))


def _imports(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_accelerate(node.module):
            for alias in node.names:
                yield "accelerate", f"{node.module}:{alias.name}", node.lineno
        elif isinstance(node, ast.Attribute) and _chain(node.value) == ["accelerate"]:
            yield "accelerate", f"accelerate:{node.attr}", node.lineno


def _is_accelerate(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "accelerate"


def _attributes(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """What is asked of an accelerator, of its state, and of accelerate's states of the process."""
    states = _names_of_states(tree)
    for node in ast.walk(tree):
        if (asked := _asked(node)) is None:
            continue
        owner, name = asked
        *before, last = _chain(owner) or [""]
        if last == "state" and "accelerator" in before:
            yield "state", name, node.lineno
        elif last == "accelerator" and NOT_ACCELERATES in before:
            continue
        elif kind := OBJECTS.get(last) or (states.get(last) if not before else None):
            yield kind, name, node.lineno


def _asked(node: ast.AST) -> tuple[ast.AST, str] | None:
    """The object and the name of an attribute, also of one that is asked for by `getattr` and `hasattr`."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if is_call and node.func.id in {"getattr", "hasattr"} and isinstance(node.args[1], ast.Constant):
        return node.args[0], node.args[1].value
    return None


def _chain(node: ast.AST) -> list[str]:
    """`a.b.C()` as `["a", "b", "C"]`; empty where something else stands in it."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Call):
        return _chain(node.func)
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return []


def _names_of_states(tree: ast.AST) -> dict[str, str]:
    """Variables that hold one of accelerate's states → its kind."""
    return {
        target.id: OBJECTS[node.value.func.id]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id in OBJECTS
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _on_trainers(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Names of HF's Trainer: overridden, read on `self` in a trainer, or read on a `trainer`."""
    known = names_of_trainer()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and _is_trainer(node):
            for name, line in _own_names(node):
                if name in known:
                    yield "trainer", name, line
        asked = _asked(node)
        if asked is not None and _chain(asked[0])[-1:] == ["trainer"] and asked[1] in known:
            yield "trainer", asked[1], node.lineno


def _is_trainer(node: ast.ClassDef) -> bool:
    return any(name.endswith("Trainer") for name in (node.name, *(_chain(base)[-1] for base in node.bases)))


def _own_names(node: ast.ClassDef) -> Iterator[tuple[str, int]]:
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child.name, child.lineno
        for target in getattr(child, "targets", [getattr(child, "target", None)]):
            if isinstance(target, ast.Name):
                yield target.id, child.lineno
    for inner in ast.walk(node):
        asked = _asked(inner)
        if asked is not None and _chain(asked[0]) == ["self"]:
            yield asked[1], inner.lineno


@functools.cache
def names_of_trainer() -> frozenset[str]:
    """Attributes of HF's Trainers: of the classes and, read from their sources, of instances."""
    names = set()
    for module, kind in (
        (transformers.trainer, transformers.Trainer),
        (transformers.trainer_seq2seq, transformers.Seq2SeqTrainer),
    ):
        names |= {name for name in dir(kind) if not hasattr(object, name)}
        names |= {
            node.attr
            for node in ast.walk(_source(module.__file__))
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and _chain(node.value) == ["self"]
        }
    return frozenset(names - {"__dict__", "__module__", "__weakref__"})


def _source(file: str) -> ast.AST:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def main(libraries: list[str]) -> int:
    """Print every use, and say whether all are served."""
    lacks = 0
    for library in libraries or installed():
        for use in uses_of(library):
            lacks += not use.is_served
            sys.stdout.write(f"{use}: {SERVED[use.kind].get(use.name, 'NOBODY') or 'as it is'}\n")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
