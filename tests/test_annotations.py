from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[1] / "compat"

MOST = {"": 0.08, "engine": 0.10, "trainer": 0.10}
"""Part of the package → the largest share of annotations that may say nothing."""

SHOWN = 8


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            of = node.args
            taken = (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg)
            given = [*(each.annotation for each in taken if each is not None), node.returns]
            yield from (each for each in given if each is not None)


def says_nothing(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


@pytest.mark.parametrize("part", MOST)
def test_few_annotations_are_any(part: str) -> None:
    everything: Counter[str] = Counter()
    nothing: Counter[str] = Counter()
    for file in sorted((PACKAGE / part).rglob("*.py")):
        found = list(annotations(ast.parse(file.read_text(encoding="utf-8"))))
        name = str(file.relative_to(PACKAGE.parent))
        everything[name] += len(found)
        nothing[name] += sum(map(says_nothing, found))
    share = nothing.total() / everything.total()
    worst = ", ".join(f"{name} ({count})" for name, count in nothing.most_common(SHOWN))
    assert share <= MOST[part], f"{share:.1%} of the annotations are `Any`; most are in {worst}"
