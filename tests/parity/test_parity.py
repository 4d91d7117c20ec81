"""Same script, same record: under transformers' Trainer and under compat's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.parity.bench import Api, Bench, Setup
from tests.parity.record import Record, assert_equal, isolated, record, recorded, run, seed
from tests.parity.setups import BY_NAME, SETUPS

if TYPE_CHECKING:
    from pathlib import Path

# transformers, accelerate and torch warn of their own doings; what they warn of is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

CROSSED = (
    "resume/mid-epoch",
    "resume/mid-epoch-with-accumulation",
    "resume/tokens-with-accumulation",
    "resume/best-model",
    "adapters/lora-resumed",
)
"""Set-ups whose two halves can be run under two libraries."""

DISTURBING = ("numerics/bf16", "numerics/bf16-full-eval", "accumulation/3", "data/stream")
"""Set-ups that leave their mark where a library keeps it for the whole process."""


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_equal(setup: Setup, theirs: Api, ours: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := setup.why_not():
        pytest.skip(why)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    expected = record(setup, theirs, tmp_path / "theirs")
    assert_equal(record(setup, ours, tmp_path / "ours"), expected)
    assert list(here.iterdir()) == [], "a run writes to its output folder alone"


@pytest.mark.parametrize("direction", ["from ours", "from theirs"])
@pytest.mark.parametrize("name", CROSSED)
def test_resumes_the_others_checkpoint(
    name: str, direction: str, theirs: Api, ours: Api, tmp_path: Path
) -> None:
    first, second = (ours, theirs) if direction == "from ours" else (theirs, ours)
    expected = in_halves(name, theirs, theirs, tmp_path / "expected")
    assert_equal(in_halves(name, first, second, tmp_path / "crossed"), expected)


def in_halves(name: str, first: Api, second: Api, out_dir: Path) -> Record:
    """Run the two parts of a script under two libraries and record the second."""
    setup = BY_NAME[name]
    begin, go_on = setup.script.parts
    with isolated():
        begin(Bench(first, setup, out_dir))
    with isolated():
        bench = Bench(second, setup, out_dir)
        return recorded(bench, go_on(bench))


@pytest.mark.parametrize("next_library", ["theirs", "ours"])
@pytest.mark.parametrize("name", DISTURBING)
def test_leaves_nothing_to_the_next_run(
    name: str, next_library: str, theirs: Api, ours: Api, tmp_path: Path
) -> None:
    if ours.name == "transformers":
        pytest.skip("its precision and its singletons do leak")
    bystander, api = BY_NAME["models/dropout"], {"theirs": theirs, "ours": ours}[next_library]
    expected = record(bystander, api, tmp_path / "expected")
    with isolated():
        run(BY_NAME[name], ours, tmp_path / "first")
        seed()
        assert_equal(run(bystander, api, tmp_path / "second"), expected)
