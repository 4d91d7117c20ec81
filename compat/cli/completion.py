"""`compat --print_shtab SHELL`: completion of all commands and their options."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from compat.arguments.fields import FIELDS
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

OPTION = "--print_shtab"
EXPLAINED = "explain"
"""The command whose flags and words are HF's arguments."""


others: dict[str, argparse.ArgumentParser] = {}
"""The commands of the process's command line beside those that LightningCLI makes."""


def script(parsers: Mapping[str, argparse.ArgumentParser], shell: str) -> str:
    """Return a script with which a shell completes the commands, their options, and files.

    jsonargparse's own script needs the options of every Lightning class, which takes minutes.

    Args:
        parsers: command of LightningCLI → its parser.
        shell: one that shtab knows.

    Raises:
        ArgumentError: shtab does not know the shell.
    """
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        msg = f"`{OPTION} {shell}`: not a shell that can be completed. Give {known}."
        raise ArgumentError(msg)
    whole = argparse.ArgumentParser("compat")
    whole.add_argument("--version", action="store_true", help="print the version")
    whole.add_argument(OPTION, choices=shtab.SUPPORTED_SHELLS, help="print completion for a shell")
    commands = whole.add_subparsers()
    for name, parser in {**others, **parsers}.items():
        command = commands.add_parser(
            name, help=(parser.description or "").partition(". ")[0], add_help=False
        )
        options = [action for action in parser._actions if action.option_strings]
        for action in options:
            command.add_argument(*action.option_strings, nargs="?", choices=action.choices, help="")
        if name == EXPLAINED:
            for field in FIELDS:
                command.add_argument(f"--{field}", nargs="?", help="")
        if len(options) < len(parser._actions):
            file: argparse.Action = command.add_argument("file", nargs="*", help="")
            file.complete = shtab.FILE  # type: ignore[attr-defined]
    text: str = shtab.complete(whole, shell)
    return text
