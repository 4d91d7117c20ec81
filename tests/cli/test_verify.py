from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import compat
from compat.verification.quantities import QUANTITIES
from tests import warm

COMPAT = ["-W", "ignore", "-m", "compat", "verify"]

PREPARES = """
    import sys
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.dropout = torch.nn.Linear(2, 1), torch.nn.Dropout(0.1)
        def forward(self, x, labels):
            logits = self.layer(self.dropout(x))
            return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}

    def trainer(**options):
        data = [{"x": torch.randn(2), "labels": torch.randn(1)} for _ in range(40)]
        defaults = dict(
            output_dir="out", max_steps=8, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            save_steps=3, eval_strategy="steps", eval_steps=4, use_cpu=True, disable_tqdm=True,
            learning_rate=0.1,
        )
        args = TrainingArguments(**{**defaults, **options})
        return Trainer(model=Model(), args=args, train_dataset=data, eval_dataset=data[:5])

    on_compat = "compat.trainer" in sys.modules

    def at(step, act):
        class Callback(TrainerCallback):
            def on_step_end(self, args, state, control, **given):
                if state.global_step == step:
                    act(**given)
        return Callback()
"""


def verify(
    folder: Path,
    code: str,
    *options: str,
    script: tuple[str, ...] = (),
    python: str = warm.PYTHON,
    **more: Any,
) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(PREPARES) + textwrap.dedent(code)
    (folder / "script.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [python, *COMPAT, "--folder", str(own(folder)), *options, "script.py", *script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **more,
    )


def own(folder: Path) -> Path:
    """The folder for the runs, which has to be empty afterwards."""
    place = folder.parent / f"{folder.name}-runs"
    place.mkdir(exist_ok=True)
    return place


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "compat-verify.json").read_text(), parse_constant=pytest.fail)


EVERYTHING = """
    one = trainer(output_dir=sys.argv[1], report_to=["tensorboard"], push_to_hub=True, save_total_limit=1)
    assert one.args.report_to == [] and not one.args.push_to_hub
    one.train()
    one.predict(one.eval_dataset)
    one.save_model("final")
    one.push_to_hub()
    with open("metrics.json", "w") as file:
        file.write("of the run")
    with open(sys.argv[1] + "/own.txt", "w") as file:
        file.write("of the run")
    two = trainer(output_dir="out/second", max_steps=2)
    two.args.output_dir = "third"
    two.train()
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("everything")
    for name in ("out/first/checkpoint-7", "final"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_text("precious")
    (folder / "metrics.json").write_text("precious")
    return folder, verify(
        folder, EVERYTHING, "--steps", "5", script=("out/first", "--hub_token", "hf_secret")
    )


def test_a_script_is_equal(everything: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = everything
    assert done.returncode == 0, done.stdout + done.stderr
    *_, verdict, where = done.stdout.splitlines()
    assert verdict.startswith("equal: 7 steps of 2 trainings, ")
    assert verdict.endswith(" values, the same to the bit.")
    assert where == "Report: compat-verify.json, picture: compat-verify.png"
    assert (folder / "compat-verify.png").read_bytes().startswith(b"\x89PNG")
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    for quantity in QUANTITIES:
        assert rows[quantity.title].rstrip().endswith("equal")


def test_the_report_has_what_was_compared(everything: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    report = report_of(everything[0])
    assert (report["schema"], report["status"], report["differences"]) == (1, 0, [])
    assert report["settings"] == {
        "target": "script.py out/first --hub_token <secret>",
        "steps": 5,
        "repeats": 2,
        "devices": 1,
        "seed": 42,
    }
    assert [run["engine"] for run in report["runs"]] == ["hf", "hf", "compat", "compat"]
    for run in report["runs"]:
        engine = {"hf": "transformers.trainer.Trainer", "compat": "compat.trainer.trainer.Trainer"}[
            run["engine"]
        ]
        assert [line["engine"] for line in run["trainings"]] == [engine] * 2
        assert [(step["train"], step["step"]) for step in run["steps"]] == [
            *((1, step) for step in range(1, 6)),
            *((2, step) for step in range(1, 3)),
        ]
        assert all(len(step["losses"]) == 2 and step["seconds"] > 0 for step in run["steps"])
    counts = {row["key"]: row["compared"] for row in report["quantities"]}
    # Two micro-batches and a logged loss for each of seven steps.
    assert (counts["loss"], counts["grad_norm"], counts["weights"]) == (21, 7, 4)
    assert all(counts.values())
    assert {"torch", "transformers", "lightning", "accelerate"} <= report["packages"].keys()


def test_nothing_of_the_users_is_touched(everything: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = everything
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {
        "script.py",
        "out/first/checkpoint-7/model.safetensors",
        "final/model.safetensors",
        "metrics.json",
        "compat-verify.json",
        "compat-verify.png",
    }
    for name in ("out/first/checkpoint-7/model.safetensors", "final/model.safetensors", "metrics.json"):
        assert (folder / name).read_text() == "precious"
    assert [*own(folder).iterdir()] == []


UNEQUAL = {
    "seeds": (
        "one.add_callback(at(3, lambda **given: torch.manual_seed(7) if on_compat else None))",
        "differs: first at step 4 of training 1, loss of micro-batch 1: ",
    ),
    "optimizer": (
        "one.add_callback(at(3, lambda optimizer, **given: patch(optimizer) if on_compat else None))",
        "differs: first at step 4 of training 1, sum of all weights after the step: ",
    ),
}

PATCH = """
    def patch(optimizer):
        step = optimizer.step
        def patched(*args, **kwargs):
            returned = step(*args, **kwargs)
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].add_(1e-7)
            return returned
        optimizer.step = patched
    one = trainer(max_steps=5)
"""


@pytest.mark.parametrize("kind", UNEQUAL)
def test_the_first_difference_is_shown(kind: str, tmp_path: Path) -> None:
    line, verdict = UNEQUAL[kind]
    code = f"{textwrap.dedent(PATCH)}{line}\none.train()\n"
    done = verify(tmp_path, code, "--repeats", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"\n{verdict}" in done.stdout
    report = report_of(tmp_path)
    assert report["status"] == 1
    first = report["differences"][0]
    assert first["hf"] != first["compat"]
    assert report["verdict"] == f"differs: first {first['sentence']}."


def test_hf_that_differs_from_itself_sets_the_band(tmp_path: Path) -> None:
    code = """
        import time
        one = trainer(save_strategy="no", eval_strategy="no")
        def disturb(model, **given):
            with torch.no_grad():
                model.layer.bias.add_(1e-6 * (1 + time.time_ns() % 1000 / 1000))
        one.add_callback(at(2, disturb))
        one.train()
    """
    done = verify(tmp_path, code, "--repeats", "1")
    assert done.returncode == 0, done.stdout
    assert "\nequal within the spread of HF's Trainer: 8 steps, " in done.stdout
    spread = {row["key"]: row["spread"] for row in report_of(tmp_path)["quantities"]}
    assert spread["learning_rate"] == 0
    assert 0 < spread["weight_sum"] < 1e-5


def test_a_script_that_fails_under_hf_is_not_compared(tmp_path: Path) -> None:
    code = "one = trainer()\none.add_callback(at(3, lambda **given: 1 / 0))\none.train()"
    done = verify(tmp_path, code)
    assert done.returncode == 2
    assert "\nnothing verified: the script fails under HF's own Trainer (status 1):" in done.stdout
    assert "\nZeroDivisionError: division by zero\n" in done.stdout
    assert f'File "{tmp_path}/script.py", line ' in done.stdout
    assert [run["engine"] for run in report_of(tmp_path)["runs"]] == ["hf"]
    assert [*own(tmp_path).iterdir()] == []


def test_a_script_that_fails_under_compat_alone_differs(tmp_path: Path) -> None:
    code = "one = trainer()\none.add_callback(at(3, lambda **given: 1 / (not on_compat)))\none.train()"
    done = verify(tmp_path, code)
    assert done.returncode == 1
    assert (
        "\ndiffers: the script ends well under HF's Trainer, and fails under compat's after 2 steps "
        "(status 1):\n" in done.stdout
    )
    assert "\nZeroDivisionError: division by zero\n" in done.stdout


NOTHING = {
    "never trains": ("trainer()", "nothing verified: the script has never trained. "),
    "compat's own": (
        "import compat\ntrainer.__globals__.update(Trainer=compat.Trainer, "
        "TrainingArguments=compat.TrainingArguments)\ntrainer().train()",
        "nothing verified: the script itself trains with `compat.trainer.trainer.Trainer`. ",
    ),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_nothing_is_claimed_where_nothing_was_compared(kind: str, tmp_path: Path) -> None:
    code, verdict = NOTHING[kind]
    done = verify(tmp_path, code)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"\n{verdict}" in done.stdout
    assert report_of(tmp_path)["status"] == 2


WRONG = {
    "nothing": ([], "give a script with its arguments, or `--self` alone."),
    "both": (["--self", "script.py"], "give a script with its arguments, or `--self` alone."),
    "missing": (["nowhere.py"], "`nowhere.py`: no such script. Give its path, or a module with -m."),
    "only": (["--only", "fp32", __file__], "`--only fp32`: names set-ups of `--self`."),
    "set-up": (["--self", "--only", "fp23"], "`only=fp23`: no such set-up. Give some of bf16, ddp"),
    "steps": (["--steps", "-1", __file__], "`steps=-1`: it must be 0 or more. Give another number."),
    "report": (["--report", "/nowhere/a.json", __file__], "`--report /nowhere/a.json`: there is no folder"),
    "folder": (["--folder", "/nowhere", __file__], "`folder='/nowhere'`: no folder can be made there"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_command_is_one_sentence(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, error = WRONG[kind]
    from compat.cli import main

    assert main(["verify", *words]) == 2
    assert capsys.readouterr().err.startswith(f"compat verify: {error}")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    code = "trainer().train()\nwith open('out/big', 'wb') as file:\n    file.write(bytes(1_000_000))"
    # Not a warm one: a limit is inherited.
    done = verify(tmp_path, code, python=sys.executable, preexec_fn=limit)
    assert done.returncode == 2
    assert "a run could not write its output there (OSError: [Errno 27] File too large)" in done.stderr
    assert "Give a folder on a disk that has room" in done.stderr
    assert [*own(tmp_path).iterdir()] == []


SLOW = """
    import os, subprocess, time
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    open(os.environ["TMPDIR"] + "/../pids", "w").write(f"{os.getpid()} {worker.pid}")
    time.sleep(100)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_ends_runs_and_removes_their_folders(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SLOW).replace("sys.executable", repr(sys.executable)))
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, *COMPAT, "--folder", str(own(tmp_path)), "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        until = time.monotonic() + 60
        while not (found := [*own(tmp_path).glob("*/*/pids")]) or not found[0].read_text():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        pids = [int(word) for word in found[0].read_text().split()]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert [*own(tmp_path).iterdir()] == []
    assert not [pid for pid in pids if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_two_processes_and_all_steps(tmp_path: Path) -> None:
    options = ("--repeats", "1", "--devices", "2", "--steps", "0")
    done = verify(tmp_path, "trainer(max_steps=3).train()", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal: 3 steps, " in done.stdout
    counts = {row["key"]: row["compared"] for row in report_of(tmp_path)["quantities"]}
    assert (counts["grad_norm"], counts["weights"]) == (6, 4)  # of both


def test_the_built_in_set_ups(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [warm.PYTHON, *COMPAT, "--self", "--only", "bf16"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nequal: of 3 set-ups, 1 equal, 2 not available.\n" in done.stdout
    cpu, gpu, xla = report_of(tmp_path)["setups"]
    assert (cpu["name"], cpu["device"], cpu["outcome"]) == ("bf16", "CPU", "equal")
    assert (gpu["outcome"], gpu["why"], gpu["report"]) == ("not available", "no GPU is visible", None)
    assert (xla["device"], xla["why"]) == ("XLA", "torch_xla is not installed")
    assert sum(row["compared"] for row in cpu["report"]["quantities"]) > 500


FUNCTION = """
    import compat

    def train():
        trainer(max_steps=2).train()

    report = compat.verify(train, repeats=1)
    print(report)
    runs = (*report.theirs, *report.ours)
    print(report.equal, compat.installed(), [run.trains[0]["engine"] for run in runs])
"""


def test_a_function(tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text(textwrap.dedent(PREPARES) + textwrap.dedent(FUNCTION))
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [warm.PYTHON, "-W", "ignore", "notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *_, verdict, last = done.stdout.splitlines()
    assert verdict.startswith("equal: 2 steps, ")
    assert last == "True False ['transformers.trainer.Trainer', 'compat.trainer.trainer.Trainer']"
    assert [path.name for path in tmp_path.iterdir()] == ["notebook.py"]


def test_a_function_is_refused_where_nothing_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(compat.verify.__globals__["ArgumentError"], match="this system cannot fork"):
        compat.verify(math.sqrt)


@pytest.mark.parametrize(("rank", "status"), [("1", 0), ("0", 2)])
def test_of_a_launchers_processes_the_first_verifies(
    rank: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from compat.cli import main

    for name, value in {"LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["verify", "--folder", "/nowhere", __file__]) == status
    assert ("no folder can be made" in capsys.readouterr().err) == (rank == "0")
