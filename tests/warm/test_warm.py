from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.warm import PYTHON

if TYPE_CHECKING:
    from pathlib import Path

SHOWS = """
import json, os, sys
found = [__name__, sys.argv[1:], os.environ.get("GIVEN"), os.getcwd(), sys.path[0]]
print(json.dumps([*found, "torch" in sys.modules]))
"""


@pytest.mark.parametrize(
    "words", [["-c", SHOWS], ["script.py"], ["-u", "-m", "script"]], ids=lambda w: w[-1][:9]
)
def test_a_program_finds_what_it_finds_under_python(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "script.py").write_text(SHOWS)
    found = []
    for python in (PYTHON, sys.executable):
        shown = subprocess.run(
            [python, "-W", "ignore", *words, "a", "--b"],
            cwd=tmp_path,
            env={**os.environ, "GIVEN": "it"},
            capture_output=True,
            text=True,
            check=True,
        )
        *same, is_loaded = json.loads(shown.stdout)
        same[-1] = os.path.realpath(os.path.join(tmp_path, same[-1]))
        found.append(same)
        assert is_loaded is (python == PYTHON)
    assert found[0] == found[1]


def test_generators_begin_as_under_python() -> None:
    code = "import numpy, torch; print(numpy.random.rand(), torch.get_num_threads())"
    shown = {
        subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(shown) == 2
    assert {line.split()[1] for line in shown} == {"1"}


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("raise ValueError('so')", 1, "ValueError: so\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("raise KeyboardInterrupt", -signal.SIGINT, ""),
        ("import atexit, sys; atexit.register(sys.stderr.write, 'end')", 0, "end"),
    ],
)
def test_it_ends_as_what_it_stands_for(code: str, status: int, error: str) -> None:
    ended = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert ended.stderr.endswith(error)


WAITS = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(100)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_it_stands_for_ends_with_it(number: signal.Signals) -> None:
    with subprocess.Popen([PYTHON, "-c", WAITS], stdout=subprocess.PIPE, text=True) as started:
        process = int(started.stdout.readline())
        assert psutil.pid_exists(process)
        started.send_signal(number)
        assert started.wait(10) == -number
    until = time.monotonic() + 10
    while psutil.pid_exists(process):
        assert time.monotonic() < until
        time.sleep(0.05)
