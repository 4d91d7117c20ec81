from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.warm import PYTHON

SCRIPT = Path(__file__).parent / "scripts" / "killed.py"


# With a writer beside, there is more that can be torn.
@pytest.mark.parametrize("flags", [{"save_async": True}], ids=["async"])
def test_a_run_that_is_killed_again_and_again_is_the_undisturbed_one(
    tmp_path: Path, flags: dict[str, bool]
) -> None:
    command = [PYTHON, str(SCRIPT), str(tmp_path), "3", "5", json.dumps(flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == 3
    assert found["resumed"] >= 1
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        whole, killed = (
            (tmp_path / run / "checkpoint-60" / name).read_bytes() for run in ("whole", "killed")
        )
        assert whole == killed
    assert not list(tmp_path.glob("killed/_*"))
