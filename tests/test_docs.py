from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from compat.arguments.fields import FIELDS
from compat.arguments.fsdp_entries import BESIDE, OF_FIRST, SHARDS
from compat.arguments.lightning import FLAGS
from compat.arguments.sharding import SIZES
from compat.translate.rules import RULES
from compat.translate.strategy import CLASSES

DOCS = Path(__file__).parents[1] / "docs"


def generator(name: str) -> object:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_arguments_is_current() -> None:
    page = (DOCS / "arguments.md").read_text(encoding="utf-8")
    assert page == generator("arguments").page(), "run `make docs`"


def test_the_page_of_arguments_has_them_all() -> None:
    named = set(re.findall(r"^\| `(\w+)`", (DOCS / "arguments.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(RULES) == set(FIELDS)
    assert named >= set(FIELDS) | set(FLAGS)


@pytest.mark.parametrize(
    "page", [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"], ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_of_strategies_has_them_all() -> None:
    page = (DOCS / "strategies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert dict(rows) == CLASSES
    words = re.findall(r"`(\w+)`", page)
    assert {*SHARDS, *OF_FIRST, *BESIDE, *SIZES} <= set(words)


CONTRIBUTING = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", re.findall(r"`(compat/[\w/]+\.py):([\w.]+)`", CONTRIBUTING), ids=":".join)
def test_the_places_that_contributors_are_led_to_exist(place: tuple[str, str]) -> None:
    file, path = place
    body: list[ast.stmt] = ast.parse((DOCS.parent / file).read_text(encoding="utf-8")).body
    for name in path.split("."):
        found = [node for node in body if getattr(node, "name", None) == name]
        assert found, f"`{path}` is not in {file}"
        body = getattr(found[0], "body", [])


@pytest.mark.parametrize("name", re.findall(r"`((?:compat|tests|docs)/[\w/.]+)`", CONTRIBUTING))
def test_the_files_that_contributors_are_led_to_exist(name: str) -> None:
    assert (DOCS.parent / name).exists()
