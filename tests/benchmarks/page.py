"""The page that the benchmarks write, a section each."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "benchmarks.md"


def write_section(heading: str, text: str, page: Path = PAGE) -> None:
    """Put a section in the place of what the page has under this heading, or at its end.

    Args:
        heading: of the second level.
        text: the section below it.
        page: the page.
    """
    before = page.read_text(encoding="utf-8")
    section = f"## {heading}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(before):
        after = pattern.sub(lambda _: section + "\n", before)
    else:
        after = f"{before.rstrip()}\n\n{section}"
    page.write_text(after.rstrip() + "\n", encoding="utf-8")


def versions() -> str:
    """What was measured, in a sentence."""
    packages = ("torch", "transformers", "lightning", "accelerate")
    found = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in packages)
    return f"Python {platform.python_version()}, {found}."
