"""The examples for other libraries, cut short: they run on Lightning and leave what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import run_in_process

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = [
    pytest.mark.slow,
    # What libraries warn of is not the reader's doing.
    pytest.mark.filterwarnings("ignore"),
]


CASES = {
    "completions": (
        "peft",
        ("--max_steps", "4", "--samples", "64"),
        ("training.png", "model.safetensors"),
    ),
    "embeddings": (
        "sentence_transformers",
        ("--samples", "32", "--held_out", "8"),
        ("training.png", "model.safetensors", "README.md"),
    ),
    "preferences": (
        "trl",
        ("--sft_steps", "4", "--dpo_steps", "2", "--samples", "64"),
        ("training.png", "sft/model.safetensors", "dpo/model.safetensors"),
    ),
    "steering": (
        "vaderSentiment",
        (
            "--sft_steps",
            "4",
            "--judge_steps",
            "4",
            "--ppo_steps",
            "2",
            *("--batch_size", "8", "--samples", "2000"),
        ),
        ("training.png", "model.safetensors", "writer/model.safetensors"),
    ),
}
"""Example → the library it is for, its words, and the files it leaves."""


@pytest.mark.parametrize("name", CASES)
def test_runs_on_lightning(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library, words, files = CASES[name]
    pytest.importorskip(library, reason="needs the library of the example")
    assert not run_in_process("run", str(EXAMPLES / f"{name}.py"), "--output_dir", str(tmp_path), *words)
    shown = capsys.readouterr()
    assert "compat: training on Lightning" in shown.err
    assert all((tmp_path / file).stat().st_size > 0 for file in files)
