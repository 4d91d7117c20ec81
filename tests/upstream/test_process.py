from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from compat.upstream import process

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SCRIPT = "from compat.upstream import process; print(process.has_script())"


def answer(*words: str, folder: Path, text: str | None = None) -> str:
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    return shown.stdout.splitlines()[-1]


def test_what_is_a_script_that_can_be_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not process.has_script()
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    (tmp_path / "script.py").write_text(SCRIPT)
    place = tmp_path / "site-packages"
    place.mkdir()
    (place / "worker.py").write_text(SCRIPT)
    assert answer("script.py", folder=tmp_path) == "True"
    assert answer("-m", "compat", "run", "--quiet", "script.py", folder=tmp_path) == "True"
    assert answer("-m", "script", folder=tmp_path) == "False"
    assert answer("-i", "script.py", folder=tmp_path, text="") == "False"
    assert answer("-c", SCRIPT, folder=tmp_path) == "False"
    assert answer("-", folder=tmp_path, text=SCRIPT) == "False"
    assert answer("site-packages/worker.py", folder=tmp_path) == "False"
