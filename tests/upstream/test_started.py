from __future__ import annotations

import subprocess
import sys

import pytest

from compat.upstream import started


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
    command = [sys.executable, "-W", "ignore", "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False"]
