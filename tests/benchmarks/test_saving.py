from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("saving.py")


def test_each_contender_saves_as_often_and_holds_training_up(tmp_path: Path) -> None:
    for contender in ("hf", "blocking", "async"):
        command = [sys.executable, str(SCRIPT), "--contender", contender, "--size", "tiny"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["contender"] == contender
        assert len(found["pauses"]) == 4
        assert 0 < sum(found["pauses"]) < found["seconds"] * 1e3
        assert found["bytes"] > 10_000
    assert list(tmp_path.iterdir()) == []
