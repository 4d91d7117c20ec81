from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from compat.arguments.fields import FIELDS
from compat.arguments.fsdp_entries import FSDP_CONFIG
from compat.arguments.lightning import FLAGS
from compat.cli import main, named

NOT_LOADED = ("torch", "transformers", "lightning")


def test_every_argument_has_a_row() -> None:
    names = [
        *FIELDS,
        *(f"lightning.{name}" for name in FLAGS),
        *(f"fsdp_config.{key}" for key in FSDP_CONFIG),
    ]
    found = named.rows(names)
    assert [row[0] for row in found] == names
    assert all(row[2] for row in found)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("max_steps", ("-1", "Trainer(max_steps)", "update steps; rules over the number of epochs")),
        (
            "use_ipex",
            ("False", "without effect", "torch alone has its optimizations now (of transformers 4.37, 4.53)"),
        ),
        (
            "evaluation_strategy",
            (
                "'no'",
                "HF's DefaultFlowCallback",
                "old name of `eval_strategy` (of transformers 4.37)",
            ),
        ),
        ("lightning.profiler", ("", "passed to Lightning's Trainer", "")),
        ("lightning.max_steps", ("", "as `max_steps`", "update steps")),
    ],
)
def test_rows(name: str, row: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--format", "json", name]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert tuple(found.values()) == (name, *row)


def test_a_default_that_has_changed_is_told_for_each_release() -> None:
    assert (
        named.rows(["optim"])[0][1]
        == "'adamw_torch' in 4.37, 'adamw_torch' in 4.53, 'adamw_torch_fused' in 5"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["learning_rat"], "`learning_rat`: no such file or argument. .* Did you mean `learning_rate`\\?"),
        (["lightning.profile"], "no such argument. Did you mean `lightning.profiler`\\?"),
        (
            ["bf16", "--devices", "2"],
            "--devices: for a plan alone. Give values, as `--bf16 VALUE`, or leave it out.",
        ),
        (["bf16", "--format", "python"], "--format python: for a plan alone."),
    ],
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *words]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_nothing_is_imported_for_an_answer() -> None:
    script = f"""
import sys
from compat.cli import main
assert main(["explain", "bf16"]) == 0
print(sorted(set(sys.modules) & set({NOT_LOADED})))
"""
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert shown.splitlines()[-1] == "[]"
    assert "Trainer(precision)" in shown
