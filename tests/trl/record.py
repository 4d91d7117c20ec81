"""Records what TRL 0.7.11 computes, for `test_golden.py` to hold `compat.trl` against it.

Run it once per area, from the repository's root, in an environment of Python 3.11 with torch 2.13.0,
trl 0.7.11, transformers 4.37.2, accelerate 0.27.2, peft 0.8.2, datasets 2.18.0, pyarrow 15.0.2,
pandas 2.2.3, numpy 1.26.4, huggingface_hub 0.23.5 and diffusers 0.27.2::

    python tests/trl/record.py models_of_tests   # the tiny models, first and once
    python tests/trl/record.py core ppo          # areas: modules of tests/trl/setups
    torchrun --nproc_per_node 2 tests/trl/record.py two_processes

The tests of several processes run it on `compat.trl`, with a folder to write to.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import types
from pathlib import Path

# TRL's wheel brings a package named `tests`, which would stand in the place of ours.
sys.modules["tests"] = types.ModuleType("tests")
sys.modules["tests"].__path__ = [str(Path(__file__).parents[1])]

from tests.trl import golden  # noqa: E402
from tests.trl.setups import parts  # noqa: E402


def main(areas: list[str], root: str, folder: Path, only: list[str] | None = None) -> None:
    """Write the golden files of some areas, or of those set-ups of theirs that have one of these names."""
    if root == "trl":
        release = importlib.import_module("trl").__version__
        assert release == "0.7.11", f"trl {release} is installed; 0.7.11 is what is recorded"
    for area in areas:
        if area == "models_of_tests":
            parts.make()
            continue
        results = {
            name: setup(golden.library(root))
            for name, setup in golden.setups(area).items()
            if only is None or name in only
        }
        rank = f"-{os.environ['RANK']}" if area == golden.OF_SEVERAL_PROCESSES else ""
        golden.write(area + rank, results, folder)
        print(f"{area}: {', '.join(results)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record golden files.")
    parser.add_argument("areas", nargs="+", metavar="AREA")
    parser.add_argument("--library", default="trl", help="what is run")
    parser.add_argument("--folder", type=Path, default=golden.FOLDER, help="where the files go")
    parser.add_argument("--only", nargs="+", metavar="SETUP", help="which set-ups; all where left out")
    asked = parser.parse_args()
    main(asked.areas, asked.library, asked.folder, asked.only)
    time.sleep(0.5)  # gloo's threads may be at work still
