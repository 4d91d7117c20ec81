from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compat.upstream import process, started

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


def test_idle_gpus_are_told_of_once() -> None:
    started.warn_of_idle.cache_clear()
    with pytest.warns(UserWarning, match="4 GPUs are there, and one is used") as caught:
        started.warn_of_idle(4)
    started.warn_of_idle(4)  # a second warning would be an error here
    assert len(caught) == 1
    for way_out in ("notebook_launcher(function, num_processes=4)", "compat run", "torchrun", "'devices': 1"):
        assert way_out in str(caught[0].message)


def test_asking_for_the_rank_loads_no_lightning() -> None:
    code = (
        "import sys; from compat.upstream import started; started.join(); print('lightning' in sys.modules)"
    )
    assert answer("-c", code, folder=Path.cwd()) == "False"
