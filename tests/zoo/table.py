"""The table of libraries in docs/guides/libraries.md, from the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "libraries.md"
BEGIN, END = "<!-- made by `make zoo` -->\n", "<!-- the end of what is made -->\n"
HEAD = (
    "| library | release | transformers | what was run | equal | what to know |\n|---|---|---|---|---|---|\n"
)

Result = dict[str, Any]


def results() -> list[Result]:
    """Read all results, those that have run first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return sorted(found, key=lambda result: not result["ways"])


def row(result: Result) -> str:
    """Write one library's row.

    Args:
        result: of that library.
    """
    cells = (
        result["library"],
        result["release"],
        result["transformers"],
        result["ran"],
        verdict(result["ways"]),
        result["note"],
    )
    return f"| {' | '.join(cells)} |\n"


def verdict(ways: dict[str, str]) -> str:
    """Say in a few words whether all ways were equal.

    Args:
        ways: how the library was run → "equal", or the first difference.
    """
    if not ways:
        return "not run"
    wrong = {way: found for way, found in ways.items() if found != "equal"}
    said = ["yes"] if set(wrong) <= {"resumed"} else []
    return "; ".join([*said, *(f"{way}: {found}" for way, found in wrong.items())]).replace("|", "\\|")


def page(text: str) -> str:
    """Put the table of today into the page.

    Args:
        text: the page, with a table or without.
    """
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{HEAD}{''.join(map(row, results()))}\n{END}{tail}"


def write() -> None:
    """Write the table into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
