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
    text = json.dumps(found, indent=2) if namespace.json else "\n".join(_lines(found))
    sys.stdout.write(text + "\n")
    return 0


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
