from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import PYTHON

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import page  # noqa: E402 (the benchmarks are scripts, which find each other beside them)
import ratios  # noqa: E402


@pytest.mark.parametrize("names", [["bare"], ["transformers", "compat"]], ids=" ".join)
def test_a_case_gives_a_number_for_each_turn(names: list[str]) -> None:
    command = [PYTHON, HERE / "ratios.py", "--case", "evaluate", "--contender", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(ratios.MARK)]
    found = [line.removeprefix(ratios.MARK).split() for line in lines]
    turns = 1 if len(names) == 1 else ratios.TURNS
    assert [name for name, _ in found] == names * turns
    assert all(float(value) > 0 for _, value in found)


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
