"""Checks which part of `compat` imports which, and three habits that no linter knows.

Run it as ``python tests/layers.py [folder]``: it prints ``file:line: what is wrong`` for each
finding and ends with status 1 if there is one. What is allowed stands in the tables below.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# From top to bottom. A part may import itself and whatever stands on a lower line; parts that
# share a line do not know each other. `compat` is the package's own `__init__`.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("compat",),
    ("trl", "sentence_transformers"),
    ("install",),
    ("rebasing",),
    ("modules", "fabric"),
    ("trainer",),
    ("engine", "callbacks", "checkpoint", "planning"),
    ("translate",),
    ("arguments",),
    ("upstream",),
    ("errors",),
)
HEIGHT = {part: -line for line, parts in enumerate(LAYERS) for part in parts}

LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
HEAVY = LIGHTNING | {"torch", "transformers"}
# Importing `compat` must stay cheap, and a plan must be readable where nothing is installed.
MUST_NOT_IMPORT = {
    **dict.fromkeys(("__main__", "trl", "sentence_transformers", "arguments", "errors"), LIGHTNING),
    "compat": HEAVY,
    "translate": HEAVY,
}
MAY_TOUCH_ENVIRONMENT = {"cli", "upstream"}
ENVIRONMENT = {"environ", "environb", "getenv", "putenv", "unsetenv"}
EXCEPTION_ENDINGS = ("Error", "Exception", "Exit", "Interrupt", "StopIteration")

Finding = tuple[int, str]


def check(package: Path) -> Iterator[str]:
    """Yields one line for each finding in a package folder."""
    for file in sorted(package.rglob("*.py")):
        module = file.relative_to(package).with_suffix("").parts
        part = "compat" if module == ("__init__",) else module[0]
        if part not in HEIGHT:
            yield f"{file}:1: `{part}` has no place in the layers"
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        for line, text in sorted(findings(tree, module, part)):
            yield f"{file}:{line}: {text}"


def findings(tree: ast.Module, module: tuple[str, ...], part: str) -> Iterator[Finding]:
    """Yields line and text of each finding in one file."""
    # Only the root may import late without it counting: its lazy public names are its purpose.
    for node in executed(tree, into_functions=part != "compat"):
        for name in imported(node, module):
            yield from ((node.lineno, text) for text in judge_import(name, part))
    for node in ast.walk(tree):
        if part not in MAY_TOUCH_ENVIRONMENT and touches_environment(node):
            yield node.lineno, f"`{part}` touches the environment; only `cli` and `upstream` may"
        if drops_exception(node):
            yield node.lineno, "an exception is made and not raised"


def executed(node: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    """Yields all nodes but those that only a type checker sees."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        children = iter(node.orelse)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not into_functions:
        return
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        yield child
        yield from executed(child, into_functions=into_functions)


def imported(node: ast.AST, module: tuple[str, ...]) -> list[str]:
    """Returns the absolute dotted names that one statement imports, none for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    here = ("compat", *module[:-1])
    above = here[: len(here) - node.level + 1] if node.level else ()
    base = [*above, *([node.module] if node.module else [])]
    return [".".join([*base, alias.name]) for alias in node.names]


def judge_import(name: str, part: str) -> Iterator[str]:
    """Yields what is wrong with one part's import of one dotted name."""
    root, _, rest = name.partition(".")
    if root in MUST_NOT_IMPORT.get(part, ()):
        yield f"`{part}` must not import `{root}`"
    if root != "compat":
        return
    first = rest.partition(".")[0]
    target = first if first in HEIGHT else "compat"
    if target != part and HEIGHT[target] >= HEIGHT[part]:
        yield f"`{part}` imports `{target}`, which is not below it"


def touches_environment(node: ast.AST) -> bool:
    """Whether a node is `os.environ` or one of its like, or imports one of them."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in ENVIRONMENT for alias in node.names)
    return (
        isinstance(node, ast.Attribute)
        and node.attr in ENVIRONMENT
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    )


def drops_exception(node: ast.AST) -> bool:
    """Whether a statement does nothing but construct an exception."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return False
    called = node.value.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name.endswith(EXCEPTION_ENDINGS)


def main(arguments: list[str]) -> int:
    """Prints all findings and returns the exit status."""
    package = Path(arguments[0]) if arguments else Path(__file__).parents[1] / "compat"
    found = list(check(package))
    print(*found or [f"{package}: imports go down only"], sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
