from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import PYTHON

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import page  # noqa: E402 (the benchmarks are scripts, which find each other beside them)
import ratios  # noqa: E402


@pytest.mark.parametrize("contender", ["bare", "transformers", "compat"])
def test_a_case_gives_a_number(contender: str) -> None:
    command = [PYTHON, HERE / "ratios.py", "--case", "evaluate", "--contender", contender]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(ratios.MARK)]
    assert json.loads(line.removeprefix(ratios.MARK)) > 0


def test_overhead_is_what_a_bare_loop_does_not_take() -> None:
    times = {("train", "bare"): 2.0, ("train", "transformers"): 6.0, ("train", "compat"): 4.0}
    assert ratios.ratio(times, "train", "transformers") == 0.5
    assert "| 0.50 |" in ratios.tabulate(times, ["train"], "transformers")
    assert ratios.contenders("construct", "before") == ["before", "compat"]


def test_sections_take_the_place_of_their_like(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("# Title\n\nText.\n\n## One\n\nold\n\n## Two\n\nkept\n", encoding="utf-8")
    page.write_section("One", "new \\1", file)
    page.write_section("Three", "last", file)
    assert file.read_text(encoding="utf-8") == (
        "# Title\n\nText.\n\n## One\n\nnew \\1\n\n## Two\n\nkept\n\n## Three\n\nlast\n"
    )


def test_the_tree_of_a_commit(tmp_path: Path) -> None:
    assert (ratios.check_out("HEAD", tmp_path) / "compat" / "__init__.py").is_file()
