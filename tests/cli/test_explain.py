from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import compat
from compat.arguments.fields import FIELDS
from compat.cli import main
from compat.cli.explain import known_only
from compat.upstream.environment import contained
from tests.cli.test_run import run, write
from tests.test_planning import BASE
from tests.warm import PYTHON

EXPLAIN = [PYTHON, "-W", "ignore", "-m", "compat", "explain"]
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")

SCRIPT = """
import sys
from transformers import HfArgumentParser, TrainingArguments

rate = float(sys.argv[1]) if sys.argv[1:] else 0.5
args = TrainingArguments("out", bf16=True, evaluation_strategy="epoch", learning_rate=rate)
raise SystemExit("went on")
"""


@pytest.fixture(autouse=True)
def as_a_process_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, and put back what a script may change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compat"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, tuple[str, ...]]:
    """HF argument → the other cells of its row, and the headline under an empty name."""
    assert main(["explain", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [tuple(cell.strip() for cell in re.split(r"\s{2,}", line)) for line in lines if line.strip()]
    return {
        "": (lines[0],),
        **{
            cells[0]: cells[1:]
            for cells in rows
            if cells[1:] and (cells[0] in {*FIELDS, "—"} or "." in cells[0])
        },
    }


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["explain", "--format", "json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    try:
        status = main(["explain", *words])
    except SystemExit as error:
        status = error.code
    shown = capsys.readouterr()
    assert (status, shown.out) == (2, "")
    assert "Traceback" not in shown.err
    return shown.err


def values(plan: dict[str, Any]) -> dict[str, Any]:
    return {entry["field"]: entry["value"] for entry in plan["provenance"] if entry["field"]}


@pytest.mark.parametrize(
    ("words", "field", "cells"),
    [
        (["--learning_rate", "2e-5"], "learning_rate", ("2e-05", "LightningModule.configure_optimizers")),
        (["--bf16"], "bf16", ("true", "Trainer(precision='bf16-mixed')")),
        (
            ["--gradient_accumulation_steps=4"],
            "gradient_accumulation_steps",
            ("4", "Trainer(accumulate_grad_batches=4)"),
        ),
        (["--use_cpu"], "use_cpu", ("true", "Trainer(accelerator='cpu')")),
        (["--lightning.profiler", "simple"], "lightning.profiler", ("simple", "Trainer(profiler='simple')")),
        (["--fsdp", "full_shard", "--devices", "8", "--accelerator", "cuda"], "fsdp", ("full_shard",)),
        (
            ["--accelerator", "cuda", "--fsdp", "full_shard", "--fsdp_config", '{"version": 1}'],
            "fsdp_config.version",
            ("1",),
        ),
    ],
)
def test_flags(
    capsys: pytest.CaptureFixture[str], words: list[str], field: str, cells: tuple[str, ...]
) -> None:
    assert explained(capsys, *words)[field][: len(cells)] == cells


def test_nothing_given(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = explained(capsys)[""]
    assert re.fullmatch(r"lightning.pytorch.Trainer on \w+, strategy single_device, precision 32-true", line)
    assert len(explained(capsys)) == 1


def test_old_names_are_told_of_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--evaluation_strategy", "epoch"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "old name of `eval_strategy`" in shown.out
    assert values(told(capsys, "--evaluation_strategy", "epoch"))["eval_strategy"] == "epoch"


def test_all_shows_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = {
        name
        for name in transformers.Seq2SeqTrainingArguments.__dataclass_fields__
        if not name.startswith("_")
    }
    assert theirs <= explained(capsys, "--all").keys()
    assert theirs <= values(told(capsys, "--all")).keys()


@pytest.mark.parametrize(
    ("words", "headline"),
    [
        (["--devices", "8", "--accelerator", "cuda"], "on 8 devices: cuda, strategy ddp"),
        (
            ["--devices", "8", "--accelerator", "gpu", "--num_nodes", "2"],
            "on 8 devices: cuda on 2 machines, strategy ddp",
        ),
        (
            ["--bf16", "--accelerator", "cuda", "--num-nodes", "1"],
            "on cuda, strategy single_device, precision bf16-mixed",
        ),
        (["--fp16", "--accelerator", "cuda"], "precision 16-mixed"),
        (["--fp16", "--accelerator", "cpu"], "precision 32-true"),
        (
            ["--deepspeed", '{"zero_optimization": {"stage": 2}}', "--accelerator", "cuda", "--devices", "2"],
            "strategy deepspeed",
        ),
    ],
)
def test_other_machines(capsys: pytest.CaptureFixture[str], words: list[str], headline: str) -> None:
    assert headline in explained(capsys, *words)[""][0]


def test_a_configuration_of_accelerates(capsys: pytest.CaptureFixture[str]) -> None:
    Path("launch.yaml").write_text(
        "distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_machines: 1\nnum_processes: 4\n"
        "deepspeed_config: {zero_stage: 3, gradient_accumulation_steps: 2}\n"
    )
    words = ["--accelerate-config", "launch.yaml", "--gradient_accumulation_steps", "2", "--bf16"]
    rows = explained(capsys, *words)
    assert rows[""][0].endswith("on 4 devices: cuda, strategy deepspeed, precision bf16-mixed")
    assert "ACCELERATE_DEEPSPEED_ZERO_STAGE=3" in rows["deepspeed"][-1]
    plan = told(capsys, *words, "--devices", "2")
    assert plan["trainer"]["devices"] == 2
    assert plan["strategy"]["options"]["config"]["zero_optimization"] == {"stage": 3}
    wrong = refused(capsys, *words[:2])
    assert "Give `gradient_accumulation_steps=2`" in wrong
    assert "Give `bf16=True`" in wrong
    Path("other.yaml").write_text("learning_rate: 0.1\n")
    assert "`accelerate_config='other.yaml'`: not a configuration" in refused(
        capsys, "--accelerate-config", "other.yaml"
    )
    assert "no such file" in refused(capsys, "--accelerate-config", "nowhere.yaml")


FILE = {
    "learning_rate": 1e-5,
    "evaluation_strategy": "steps",
    "lightning": {"profiler": "simple"},
    "lightning.max_time": "00:01:00:00",
}


@pytest.mark.parametrize("name", ["args.json", "args.yaml", "args.yml"])
def test_files(capsys: pytest.CaptureFixture[str], name: str) -> None:
    Path(name).write_text(json.dumps(FILE) if name.endswith("json") else yaml.safe_dump(FILE))
    found = values(told(capsys, name))
    expected = {"learning_rate": 1e-5, "eval_strategy": "steps", "lightning.profiler": "simple"}
    assert {field: found[field] for field in expected} == expected
    # Flags win, each by itself.
    found = values(told(capsys, name, "--learning_rate", "0.5", "--lightning.max_time=00:00:00:05"))
    assert (found["learning_rate"], found["lightning.profiler"]) == (0.5, "simple")
    assert found["lightning.max_time"] == "00:00:00:05"


def test_other_arguments_of_a_file_are_passed_over_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    assert known_only({"model_name": "x", "seed": 1, "lerning_rate": 1}) == {"seed": 1}
    shown = capsys.readouterr().err
    assert "`model_name`: not a training argument; passed over." in shown
    assert "Did you mean `learning_rate`?" in shown


@pytest.mark.parametrize("library", [compat, transformers])
def test_saved_arguments(capsys: pytest.CaptureFixture[str], library: Any) -> None:
    with contained():
        args = library.TrainingArguments(
            **BASE,
            bf16=True,
            learning_rate=0.5,
            eval_strategy="epoch",
            hub_token="s3cret",  # noqa: S106
        )
    torch.save(args, "training_args.bin")
    found = values(told(capsys, "training_args.bin", "--max_steps", "7"))
    expected = {"bf16": True, "learning_rate": 0.5, "eval_strategy": "epoch", "max_steps": 7}
    assert {field: found[field] for field in expected} == expected
    assert "s3cret" not in json.dumps(told(capsys, "training_args.bin", "--all"))


def test_a_script_is_run_until_it_has_its_arguments(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(tmp_path, SCRIPT)
    where = ["--devices", "8", "--accelerator", "cuda"]
    rows = explained(capsys, *where, "--", "script.py", "0.25")
    assert rows[""][0].endswith("on 8 devices: cuda, strategy ddp, precision bf16-mixed")
    assert rows["learning_rate"][0] == "0.25"
    assert rows["evaluation_strategy"][0] == "epoch"
    assert not compat.installed()
    # Flags win over the script; its arguments are its own.
    found = values(told(capsys, "--learning_rate", "0.125", "--", "script.py", "0.25"))
    assert found["learning_rate"] == 0.125


def test_what_a_script_adds_to_the_arguments_is_told_and_left_to_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = "@dataclass\nclass Mine(TrainingArguments):\n    packing: bool = False\n    length: int = 5\n"
    script = SCRIPT.replace("\nrate", f"\nfrom dataclasses import dataclass\n{own}\nrate")
    write(tmp_path, script.replace("args = TrainingArguments(", "args = Mine(packing=True, output_dir="))
    main(["explain", "--format", "json", "--", "script.py"])
    shown = capsys.readouterr()
    assert shown.err == "compat explain: `packing=True`: left to the own code of Mine.\n"
    assert values(json.loads(shown.out))["learning_rate"] == 0.5


REFUSED: list[tuple[list[str], list[str]]] = [
    (["--lerning_rate", "1"], ["compat explain: `--lerning_rate`", "Did you mean `--learning_rate`?"]),
    (["--learning_rate", "-1"], ["`learning_rate=-1.0`", "Give 0 or more."]),
    (
        ["--max_steps", "many"],
        ["usage: compat explain [options]", "compat explain: error: argument --max_steps"],
    ),
    (["--devices", "x"], ["argument --devices: invalid int value"]),
    (["--devices", "0"], ["`devices=0`"]),
    (["--accelerator", "cudda"], ["Did you mean `cuda`?"]),
    (["--format", "xml"], ["invalid choice: 'xml'"]),
    (["--lightning.profilr", "simple"], ["Did you mean `profiler`?"]),
    (["--fsdp", "full_shard", "--fsdp_config", "{bad"], ["`fsdp_config=<str>`", "not JSON"]),
    (["--fsdp", "full_shard", "--fsdp_config", '{"version": "x"}'], ["there are versions 1 and 2"]),
    (["--accelerator_config", "{bad", "--split_batches"], ["`accelerator_config=<str>`"]),
    (["nowhere.json"], ["`nowhere.json`: no such file"]),
    (["."], ["`.`: no such file"]),
    (["bad.json"], ["`bad.json`: neither JSON nor YAML"]),
    (["bad.yaml"], ["`bad.yaml`: neither JSON nor YAML"]),
    (["list.json"], ["`list.json`: holds no arguments by name"]),
    (["empty.yaml"], ["`empty.yaml`: holds no arguments by name"]),
    (["text.yaml"], ["`learning_rate='2e-5'`", "2.0e-5"]),
    (["noise.yaml"], ["neither JSON nor YAML"]),
    (["noise.bin"], ["not a file of saved arguments"]),
    (["--"], ["no such script"]),
    (["--", "nowhere.py"], ["`nowhere.py`: no such script"]),
    (["--", "nothing.py"], ["`nothing.py`: ended without making TrainingArguments"]),
    (["--hub_token", "s3cret", "--push_to_hub_token", "s3cret2", "--seed", "-1"], ["`seed=-1`"]),
]


@pytest.mark.parametrize(("words", "texts"), REFUSED, ids=" ".join)
def test_errors_end_with_status_2_and_say_what_to_do(
    capsys: pytest.CaptureFixture[str], words: list[str], texts: list[str]
) -> None:
    contents = {
        "bad.json": b"{bad",
        "bad.yaml": b"a: [",
        "list.json": b"[1]",
        "empty.yaml": b"",
        "text.yaml": b"learning_rate: 2e-5",
        "noise.yaml": b"\xff\xfe\x00",
        "noise.bin": b"\xff\xfe\x00",
        "nothing.py": b"",
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
    shown = refused(capsys, *words)
    for text in texts:
        assert text in shown
    assert "s3cret" not in shown


def test_a_token_is_shown_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("table", "json", "python"):
        assert main(["explain", "--all", "--hub_token", "s3cret", "--format", form]) == 0
    shown = capsys.readouterr()
    assert "s3cret" not in shown.out + shown.err
    assert "<secret>" in shown.out


def test_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    plan = told(capsys, "--bf16", "--max_steps", "7", "--all")
    assert plan == compat.plan({"bf16": True, "max_steps": 7}).to_dict()
    assert (plan["trainer"]["max_steps"], plan["precision"]) == (7, "bf16-mixed")


def test_other_commands_keep_refusing_what_they_do_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--nonsense"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: compat run")


def test_piped_it_is_plain_lines(tmp_path: Path) -> None:
    write(tmp_path, SCRIPT)
    ended = run([*EXPLAIN, "--devices", "8", "--accelerator", "cuda", "--", "script.py"], tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    (row,) = [line for line in ended.stdout.splitlines() if line.startswith("evaluation_strategy")]
    assert re.split(r"\s{2,}", row.strip())[1:3] == ["epoch", "eval_strategy='epoch'"]


def test_an_error_of_the_command_itself(tmp_path: Path) -> None:
    ended = run([*EXPLAIN, "--learning_rate", "-1"], tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "compat explain: `learning_rate=-1.0`: too small. Give 0 or more.\n"


def test_on_a_terminal_it_is_coloured_and_as_wide(tmp_path: Path) -> None:
    width = 60
    shown = on_a_terminal(
        [*EXPLAIN, "--bf16", "--evaluation_strategy", "epoch", "--learning_rate", "0.5"], width
    )
    assert "\x1b[36m" in shown
    lines = ESCAPES.sub("", shown).splitlines()
    assert "lightning.pytorch.Trainer on" in lines[0]
    assert max(map(len, map(str.rstrip, lines))) <= width
    # Nothing is cut off: what does not fit goes on in the next line.
    assert "…" not in shown


def on_a_terminal(command: list[str], width: int) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    path = os.pathsep.join(
        filter(None, (str(Path(compat.__file__).parents[1]), os.environ.get("PYTHONPATH")))
    )
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    environment = {**kept, "PYTHONPATH": path, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # what Linux says when the other end has closed
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=60) == 0
    return shown.decode()
