"""The zoo itself: what it finds, what it writes. The libraries are no part of the tests."""

from __future__ import annotations

import ast

import pytest

from tests.zoo import table
from tests.zoo.libraries import ABSENT, LENDERS, LIBRARIES
from tests.zoo.record import with_install
from tests.zoo.zoo import HERE, first_difference, outcome

RESULT = {
    "library": "a-library",
    "release": "1.0",
    "transformers": "5.24.0",
    "ran": "`Trainer`",
    "ways": {"one": "equal", "another": "equal"},
    "note": "",
}
RECORD = {
    "trainers": [
        {
            "weights": {"bias": "#1"},
            "optimizer": None,
            "scheduler": None,
            "log_history": [{"loss": 0.5}, {"train_loss": 0.5}],
            "events": [],
        }
    ],
    "files": {},
    "generators": [1, 2, 3],
}
SCRIPT = '''"""A script."""
from __future__ import annotations
import sys
from os import (
    path,
)
print(path)
'''


def changed(**entries: object) -> dict[str, object]:
    return {**RECORD, "trainers": [{**RECORD["trainers"][0], **entries}]}


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (changed(weights={"bias": "#2"}), "trainers[0].weights.bias"),
        (changed(log_history=[{"loss": 0.5}]), "trainers[0].log_history"),
        ({**RECORD, "generators": [1, 2, 4]}, "generators[2]"),
        ({**RECORD, "files": {"model.safetensors": "present"}}, "files.model.safetensors"),
    ],
)
def test_what_differs_is_named(other: dict[str, object], place: str) -> None:
    assert first_difference(RECORD, RECORD) == "equal"
    assert first_difference(other, RECORD).startswith(place)


def test_an_interruption_may_change_sums_and_nothing_else() -> None:
    resumed = changed(log_history=[{"loss": 0.5}, {"train_loss": 0.2}], events=["fewer"])
    assert first_difference(outcome(resumed), outcome(RECORD)) == "equal"
    assert first_difference(outcome(changed(weights={"bias": "#2"})), outcome(RECORD)) != "equal"


def test_a_result_makes_a_row() -> None:
    assert table.row(RESULT) == "| a-library | 1.0 | 5.24.0 | `Trainer` | yes |  |\n"
    found = {**RESULT, "ways": {"one": "equal", "another": "log_history[0]: 1 | 2"}}
    assert "| another: log_history[0]: 1 \\| 2 |" in table.row(found)
    assert "| not run |" in table.row({**RESULT, "ways": {}})


def test_a_script_installs_before_or_after_its_imports() -> None:
    before, after = (with_install(SCRIPT, before=where).splitlines() for where in (True, False))
    assert before.index("import compat; compat.install()") == 2
    assert after.index("import compat; compat.install()") == 6
    ast.parse("\n".join(before))
    ast.parse("\n".join(after))


def test_the_page_has_the_results() -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    assert page == table.page(page), "run `make zoo`"


def test_each_library_has_its_script_group_and_result() -> None:
    for library in LIBRARIES:
        assert (HERE / "scripts" / f"{library.key}.py").exists(), library
        assert (table.RESULTS / f"{library.key}.json").exists(), library
        assert (HERE / "groups" / f"{library.group}.txt").exists(), library
        assert library.group in LENDERS


def test_results_say_what_the_table_of_libraries_says() -> None:
    results = {result["library"]: result for result in table.results()}
    assert set(results) == {library.name for library in LIBRARIES} | {name for name, _ in ABSENT}
    for library in LIBRARIES:
        assert results[library.name]["ran"] == library.ran
        assert results[library.name]["note"] == library.note
        assert results[library.name]["compared"]["steps"] > 0
