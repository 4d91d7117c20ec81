"""What commands say on stderr, with colours on a terminal."""

from __future__ import annotations

import sys
from typing import Final

PROBLEM: Final = "bold red"
NOTE: Final = "bold yellow"


def say(prog: str, text: object, style: str = PROBLEM) -> None:
    """Write a sentence to stderr.

    Args:
        prog: the command that says it, as `compat run`; coloured on a terminal, unless `NO_COLOR` is set.
        text: the sentence.
        style: of the command, for rich.
    """
    if not sys.stderr.isatty():
        sys.stderr.write(f"{prog}: {text}\n")
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{prog}:", style), f" {text}"), soft_wrap=True)
