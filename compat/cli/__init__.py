"""The command `compat`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from compat.cli import run

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = (run,)
"""Each module adds one command: `add_parser(subparsers)`, and `main(namespace)` → exit status."""


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
    namespace = parser.parse_args(argv)
    status: int = namespace.main(namespace)
    return status
