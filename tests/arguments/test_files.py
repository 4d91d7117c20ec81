from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from compat.arguments.files import entries, is_on

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_has_no_entries() -> None:
    assert entries(None) == entries("") == entries({}) == {}


def test_what_is_given_is_left_alone() -> None:
    given = {"a": 1}
    entries(given)["b"] = 2
    assert given == {"a": 1}


def test_files_and_json(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"a": {"b": "auto"}}', encoding="utf-8")
    assert entries(file) == entries(str(file)) == entries(' {"a": {"b": "auto"}}') == {"a": {"b": "auto"}}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("nowhere.json", "no such file"),
        ("{bad", r"^not JSON \("),
        ([1], "no entries by name"),
        (7, "no entries by name"),
    ],
)
def test_what_cannot_be_read(given: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        entries(given)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("True", True), (" on ", True), (1, True), ("false", False), ("", False), (None, False)],
)
def test_yes_and_no(value: Any, *, expected: bool) -> None:
    assert is_on(value) is expected
