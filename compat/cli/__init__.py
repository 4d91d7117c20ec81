"""The command `compat`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from compat.cli import convert, explain, fit, run

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = (run, explain, convert, fit)
"""Each module adds commands: `add_parser(subparsers)`, and `main(namespace)` → exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="compat", description="Hugging Face training scripts on PyTorch Lightning."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] in fit.COMMANDS:
        return fit.run(words)
    words, behind = _cut(words)
    namespace, more = parser.parse_known_args(words)
    if more and not getattr(namespace, "takes_more", False):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    namespace.more, namespace.behind = more, behind
    status: int = namespace.main(namespace)
    return status


def _cut(words: list[str]) -> tuple[list[str], list[str] | None]:
    """A command line, and what stands behind `--` in one that explains a script."""
    if words[:1] != ["explain"] or "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]
