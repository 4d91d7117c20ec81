from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

import compat
from compat.errors import UpstreamError
from compat.upstream.private import PRIVATE, resolve

INSTALLED = Version(transformers.__version__)


def concerns_installed(seen: tuple[str, ...]) -> bool:
    """Whether the installed transformers is at least the first release, and of a line up to the last one."""
    releases = [Version(each.split()[1]) for each in seen if each.startswith("transformers ")]
    return not releases or (min(releases) <= INSTALLED and INSTALLED.major <= max(releases).major)


@pytest.mark.parametrize("where", [name.where for name in PRIVATE if concerns_installed(name.seen)])
def test_every_private_name_is_where_it_was_seen(where: str) -> None:
    assert resolve(where) is not None


def test_a_name_that_moved_is_reported() -> None:
    with pytest.raises(UpstreamError, match=r"`transformers:Trainer._gone` has moved"):
        resolve("transformers:Trainer._gone")


def test_what_instances_no_longer_have_is_reported() -> None:
    with pytest.raises(UpstreamError, match="instances no longer have it"):
        resolve("transformers.trainer:Trainer#_gone")


def test_every_private_method_that_we_override_is_listed() -> None:
    listed = {re.split("[.#:]", name.where)[-1] for name in PRIVATE}
    overridden = {
        method.name
        for file in Path(compat.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef)
        if any(isinstance(mark, ast.Name) and mark.id == "override" for mark in method.decorator_list)
        if method.name.startswith("_")
    }
    assert overridden
    assert overridden - listed == set()


def test_each_name_is_listed_once() -> None:
    places = [name.where for name in PRIVATE]
    assert len(places) == len(set(places))


def test_lightning_is_of_a_release_that_was_seen() -> None:
    assert importlib.metadata.version("lightning").startswith("2.")
