"""Checks which part of `compat` imports which, circles of modules, and three habits that no linter knows.

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
    ("verification",),
    ("trl", "sentence_transformers"),
    ("install",),
    ("patching",),
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

# The one circle: a plan renders itself. A name stands for all modules below it, too.
CIRCLE = ("compat.translate.plan", "compat.translate.source")

Finding = tuple[int, str]


def check(package: Path) -> Iterator[str]:
    """Yields one line for each finding in a package folder."""
    yield from circles(package)
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


def circles(package: Path) -> Iterator[str]:
    """Yields one line for each circle of modules, imports in functions and for type checkers counted."""
    files = {}
    for file in sorted(package.rglob("*.py")):
        module = ("compat", *file.relative_to(package).with_suffix("").parts)
        files[".".join(module[:-1] if module[-1] == "__init__" else module)] = file
    # The root is left out: it fetches its public names from everywhere, and imports nothing by itself.
    files.pop("compat", None)
    graph = {name: dependencies(name, file, files) for name, file in files.items()}
    for circle in components(graph):
        if not all(is_allowed(name) for name in circle):
            yield f"{files[circle[0]]}:1: imports in a circle: {', '.join(circle)}"


def is_allowed(name: str) -> bool:
    """Whether a module is part of the circle that is allowed."""
    return any(name == part or name.startswith(f"{part}.") for part in CIRCLE)


def dependencies(name: str, file: Path, files: dict[str, Path]) -> set[str]:
    """Returns the modules of the package that a file imports anywhere.

    A name that is imported from a package counts for the module that the package has it from.
    """
    meant = (
        origin(each, files)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for each in imported(node, located(name, file))
    )
    return {module for module in meant if module is not None and module != name}


def located(name: str, file: Path) -> tuple[str, ...]:
    """Returns the path of a module below the package, as `imported` takes it."""
    inside = tuple(name.split(".")[1:])
    return (*inside, "__init__") if file.name == "__init__.py" else inside


def origin(name: str, files: dict[str, Path]) -> str | None:
    """Returns the module that a dotted name comes from, through packages that hand it on."""
    if name in files:
        return name
    package, _, attribute = name.rpartition(".")
    if package not in files:
        return origin(package, files) if package.startswith("compat.") else None
    if files[package].name == "__init__.py":
        tree = ast.parse(files[package].read_text(encoding="utf-8"))
        for node in tree.body:
            if not isinstance(node, ast.ImportFrom):
                continue
            names = imported(node, located(package, files[package]))
            for alias, source in zip(node.names, names, strict=True):
                if (alias.asname or alias.name) == attribute and source.startswith("compat."):
                    return origin(source, files)
    return package


def components(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Yields the sets of modules that reach each other, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                yield from visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            found = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(found) > 1:
                yield sorted(found)

    for name in sorted(graph):
        if name not in order:
            yield from visit(name)


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
