"""`compat run` with scripts of several eras of TRL."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from tests.commands import run_in_process

if TYPE_CHECKING:
    from pathlib import Path

OLD = "import trl\nprint(trl.PPOTrainer.step.__module__, trl.__version__)"
CURRENT = "from trl import SFTConfig\nimport trl\nprint(SFTConfig.__module__, trl.__version__)"
SAYS = "is written for TRL 0.7, whose interface compat.trl offers"


@pytest.mark.parametrize("way", ["a file", "a module", "a folder", "a module beside"])
def test_an_old_script_finds_ours(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["script.py"]
    if way == "a folder":
        (tmp_path / "__main__.py").write_text(OLD)
        words = [str(tmp_path)]
    elif way == "a module beside":
        (tmp_path / "of_an_old_era.py").write_text(OLD)
        (tmp_path / "script.py").write_text("import of_an_old_era")
    else:
        (tmp_path / "script.py").write_text(OLD)
    if way == "a module":
        monkeypatch.syspath_prepend(str(tmp_path))
        words = ["-m", "script"]
    assert not run_in_process("run", *words)
    shown = capsys.readouterr()
    assert shown.out == "compat.trl.trainer.ppo_trainer 0.7.11\n"
    assert shown.err.count(SAYS) == 1
    assert "lacks PPOTrainer" in shown.err


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs a current TRL")
def test_a_current_script_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script.py").write_text(CURRENT)
    assert not run_in_process("run", str(tmp_path / "script.py"))
    shown = capsys.readouterr()
    assert shown.out.startswith("trl.")
    assert "0.7.11" not in shown.out
    assert SAYS not in shown.err
