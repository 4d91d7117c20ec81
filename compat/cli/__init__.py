"""The command `compat`."""

from __future__ import annotations

import argparse
import functools
import sys
from typing import TYPE_CHECKING

from compat import __version__
from compat.cli import completion, convert, env, explain, fit, run, verify
from compat.cli.terminal import say
from compat.errors import DependencyError
from compat.upstream.required import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS = (run, explain, verify, convert, fit, env)
"""Each module adds commands: `add_parser(subparsers)`, and `main(namespace)` → exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="compat",
        description="Hugging Face training scripts on PyTorch Lightning.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"compat {__version__}")
    parser.add_argument(completion.OPTION, metavar="SHELL", help="print completion for a shell")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        parser.print_help()
        return 0
    if words[0].startswith(completion.OPTION):
        # `fit` prints it, with the options of its own.
        completion.others.update(commands.choices)
        words = ["fit", *words]
    work = _chosen(parser, words)
    try:
        require()
    except DependencyError as error:
        say("compat", error)
        return 2
    return work()


def _chosen(parser: argparse.ArgumentParser, words: list[str]) -> Callable[[], int]:
    """Return a function that runs the selected command."""
    if words[:1] and words[0] in fit.COMMANDS:
        return functools.partial(fit.run, words)
    words, behind = _cut(words)
    namespace, more = parser.parse_known_args(words)
    if more and not getattr(namespace, "takes_more", False):
        from compat.arguments.checks import nearest

        meant = filter(None, (nearest(word.partition("=")[0], namespace.options) for word in more))
        parser.error(" ".join([f"unrecognized arguments: {' '.join(more)}.", *meant]))
    namespace.more, namespace.behind = more, behind
    return functools.partial(namespace.main, namespace)


def _cut(words: list[str]) -> tuple[list[str], list[str] | None]:
    """Split a command line that explains a script at `--`."""
    if words[:1] != ["explain"] or "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]
