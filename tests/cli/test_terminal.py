from __future__ import annotations

import io
from typing import TYPE_CHECKING

from compat.cli.terminal import NOTE, say

if TYPE_CHECKING:
    import pytest

LONG = "`learning_rate='[bold]a'`: " + "word " * 60 + "end."


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, *said: tuple[str, ...]) -> str:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        for words in said:
            say(*words)
    return terminal.getvalue()


def test_a_terminal_shows_who_speaks_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = shown(monkeypatch, ("compat run", LONG), ("compat explain", "passed over.", NOTE))
    assert found == f"\x1b[1;31mcompat run:\x1b[0m {LONG}\n\x1b[1;33mcompat explain:\x1b[0m passed over.\n"


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    found = shown(monkeypatch, ("compat run", LONG))
    assert "\x1b[1;31m" not in found
    assert LONG in found


def test_a_file_gets_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    say("compat run", LONG)
    assert capsys.readouterr().err == f"compat run: {LONG}\n"
