from __future__ import annotations

import contextlib
import io
import subprocess
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from compat.cli import COMMANDS, fit, main
from compat.upstream import process

if TYPE_CHECKING:
    from pathlib import Path

ASK = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
$(complete -p compat | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What bash is given; its making reads the parsers of all commands."""
    file = tmp_path_factory.mktemp("completion") / "compat.bash"
    written = io.StringIO()
    command = mock.patch.object(process, "command", [])
    with contextlib.redirect_stdout(written), command, pytest.raises(SystemExit) as ended:
        main(["--print_shtab=bash"])
    assert ended.value.code == 0
    file.write_text(written.getvalue())
    return file


def offered_by(script: Path, words: str) -> set[str]:
    asked = ["/bin/bash", "-c", ASK.format(script=script, words=words)]
    return set(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("compat explain --learn", {"--learning_rate"}),
        ('compat explain --format ""', {"table", "json", "python"}),
        ("compat fit --bf", {"--bf16", "--bf16_full_eval"}),
        ("compat run --d", {"--dry-run", "--devices"}),
        ("compat verify --st", {"--steps"}),
    ],
)
def test_bash_is_offered(script: Path, words: str, offered: set[str]) -> None:
    assert offered_by(script, words) == offered


def test_bash_is_offered_every_command(script: Path) -> None:
    own = {command.__name__.rpartition(".")[2] for command in COMMANDS if command is not fit}
    assert offered_by(script, 'compat ""') == own | set(fit.COMMANDS)


def test_a_shell_that_is_not_known_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "command", [])
    assert main(["--print_shtab", "cmd"]) == 2
    assert "`--print_shtab cmd`: not a shell that can be completed. Give bash, zsh" in capsys.readouterr().err
