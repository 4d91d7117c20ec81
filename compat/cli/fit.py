"""`compat fit | validate | test | predict`: train on Lightning from the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

COMMANDS = {
    "fit": "train a model on Lightning, from flags of Hugging Face's and Lightning's",
    "validate": "evaluate a model",
    "test": "test a model",
    "predict": "write a model's predictions to a file",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line, for its help; they read their words themselves."""
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)


def run(words: Sequence[str]) -> int:
    """Run one of the commands.

    Args:
        words: the command and its arguments.

    Returns:
        The exit status.
    """
    from compat.cli.lightning import run as run_command
    from compat.upstream import process

    # Otherwise the other processes would not run this command.
    process.command[:] = [sys.executable, "-m", "compat", *words]
    return run_command(words)
