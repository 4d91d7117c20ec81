"""Where there is no space left, an error says so, nothing is left behind, and nothing is aborted."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

from tests.warm import PYTHON

SCRIPT = Path(__file__).parent / "scripts" / "full_disk.py"


def test_whatever_is_written(tmp_path: Path) -> None:
    command = [PYTHON, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"lightning", "hf", "sharded", "pretrained", "file of Lightning's"}
    for name, outcomes in found.items():
        # First there is too little room, then there is enough.
        runs = [outcome for outcome, _ in itertools.groupby(outcomes)]
        assert runs == ["refused", "written"], (name, outcomes, done.stderr)
