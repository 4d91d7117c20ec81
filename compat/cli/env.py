"""`compat env`: what a bug report needs to say of a machine."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from compat.upstream.report import report

if TYPE_CHECKING:
    import argparse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "env",
        help="show versions, devices and optional libraries, for a bug report",
        description="Show what a bug report needs: versions, devices, optional libraries, and what serves "
        "the installed release of transformers. Nothing leaves the machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(main=main, options=tuple(parser._option_string_actions))


def main(namespace: argparse.Namespace) -> int:
    """Print the report.

    Returns:
        0.
    """
    found = report()
    if namespace.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    elif sys.stdout.isatty():
        _print_in_colors(found)
    else:
        sys.stdout.write("\n".join(_lines(found)) + "\n")
    return 0


def _print_in_colors(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for line in _lines(found):
        text = Text(line, style="" if line.startswith(" ") else "bold")
        text.highlight_regex(r"^  \S+(?: \S+)*(?=  )", "cyan")
        text.highlight_regex(r"(?<=  )(?:not installed|none|no)$", "dim")
        console.print(text)


def _lines(found: dict[str, Any]) -> list[str]:
    """A heading for each part, and an aligned line for each entry."""
    lines = []
    for part, entries in found.items():
        width = max(map(len, entries), default=0)
        shown = [f"  {name:<{width}}  {_shown(value)}" for name, value in entries.items()]
        lines += [f"{part}:", *(shown or ["  none"])]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not installed" if value is None else str(value)
