from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests import warm

if TYPE_CHECKING:
    from pathlib import Path

COMPAT = [warm.PYTHON, "-W", "ignore", "-m", "compat", "run"]
BARE = [
    sys.executable,
    "-W",
    "ignore",
    "-c",
    "import sys; from compat.cli.run import run_script; run_script(sys.argv[1], sys.argv[2:])",
]
"""What `compat run` does once our classes are in place, without the seconds that takes."""
PYTHON = [sys.executable, "-W", "ignore"]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def write(folder: Path, code: str, name: str = "script.py") -> str:
    (folder / name).write_text(textwrap.dedent(code))
    return name


BEHAVIOURS = {
    "arguments": "import sys; print(sys.argv)",
    "name": "print(__name__, __file__, __package__, __spec__)",
    "main module": "import sys; print(sys.modules['__main__'].__dict__ is globals())",
    "neighbour": "import neighbour; print(neighbour.VALUE)",
    "path": "import sys; print(sys.path[0])",
    "relative import": "from . import neighbour",
    "exit 0": "import sys; sys.exit()",
    "exit 7": "import sys; sys.exit(7)",
    "exit with text": "import sys; sys.exit('told so')",
    "error": "def f():\n    raise ValueError('wrong')\nf()",
    "chained error": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('x') from e",
    "syntax error": "def f(:",
    "own hook": "import sys\nsys.excepthook = lambda *a: print('mine', a[0].__name__)\nraise ValueError",
    "interrupt": "raise KeyboardInterrupt",
    "atexit": "import atexit; atexit.register(print, 'bye')",
    "pickled class": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "source": "import inspect\ndef f(): return 1\nprint(inspect.getsource(f))",
    "spawned worker": """
        import multiprocessing
        def double(x): return 2 * x
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(double, [1, 2]))
        """,
    "encoding": "# -*- coding: latin-1 -*-\nprint('plain')",
}


@pytest.mark.parametrize("code", BEHAVIOURS.values(), ids=BEHAVIOURS)
def test_a_script_behaves_as_under_python(tmp_path: Path, code: str) -> None:
    write(tmp_path, "VALUE = 5", "neighbour.py")
    script = write(tmp_path, code)
    ours = run([*BARE, script, "--flag", "value", "-m", "--", "x"], tmp_path)
    theirs = run([*PYTHON, script, "--flag", "value", "-m", "--", "x"], tmp_path)
    assert ours.stdout == theirs.stdout
    assert ours.stderr == theirs.stderr
    assert ours.returncode == theirs.returncode


def test_a_module_behaves_as_under_python(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    write(tmp_path / "package", "VALUE = 5", "__init__.py")
    code = "import sys\nfrom . import VALUE\nprint(__name__, __package__, VALUE, sys.argv)"
    write(tmp_path / "package", code, "tool.py")
    ours = run([*COMPAT, "-m", "package.tool", "a", "--b"], tmp_path)
    theirs = run([*PYTHON, "-m", "package.tool", "a", "--b"], tmp_path)
    assert (ours.stdout, ours.returncode) == (theirs.stdout, theirs.returncode)


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    ended = run([*COMPAT, "nowhere.py"], tmp_path)
    assert ended.returncode == 2
    assert "`nowhere.py`: no such script" in ended.stderr


TRAINS = """
    import sys
    import torch, transformers
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
        def forward(self, x, labels):
            return {"loss": ((self.layer(x) - labels) ** 2).mean()}

    class Mine(Trainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    torch.manual_seed(0)
    data = [{"x": torch.randn(2), "labels": torch.randn(1)} for _ in range(8)]
    args = TrainingArguments(
        output_dir="out", max_steps=4, gradient_accumulation_steps=2, per_device_train_batch_size=2,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        learning_rate=0.1,
    )
    trainer = Mine(model=Model(), args=args, train_dataset=data)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    print([entry.get("loss") for entry in trainer.state.log_history])
    print(trainer.model.layer.weight.tolist())
    print("lightning.pytorch" in sys.modules, file=sys.stderr)
"""


def test_a_training_script_runs_on_lightning_with_the_same_numbers(tmp_path: Path) -> None:
    script = write(tmp_path, TRAINS)
    ours, theirs = run([*COMPAT, script], tmp_path), run([*PYTHON, script], tmp_path)
    assert ours.returncode == theirs.returncode == 0
    assert ours.stdout == theirs.stdout
    assert ours.stderr.strip().endswith("True")
    assert theirs.stderr.strip().endswith("False")
    assert "Trainer(accumulate_grad_batches=2)" in ours.stderr
    assert "learning_rate=0.1" in ours.stderr


def test_quiet_prints_nothing_of_its_own(tmp_path: Path) -> None:
    script = write(tmp_path, TRAINS)
    assert "compat:" not in run([*COMPAT, "--quiet", script], tmp_path).stderr


def test_a_dry_run_stops_where_training_would_begin(tmp_path: Path) -> None:
    script = write(tmp_path, TRAINS)
    done = run([*COMPAT, "--dry-run", script], tmp_path)
    assert done.returncode == 0
    assert done.stdout == ""
    assert "learning_rate=0.1" in done.stderr
    assert "  Total optimization steps = " in done.stderr
    assert done.stderr.rstrip().endswith("compat: stopped before training.")


BAD = """
    from transformers import TrainingArguments

    def main():
        TrainingArguments("out", num_train_epoch=3)

    main()
"""


def test_an_error_in_the_arguments_is_one_sentence(tmp_path: Path) -> None:
    script = write(tmp_path, BAD)
    done = run([*COMPAT, script], tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "compat run: script.py, line 5: `num_train_epoch=3`: TrainingArguments has no such argument. "
        "Did you mean `num_train_epochs`?",
        "(`compat run --traceback script.py` shows where it was raised.)",
    ]
    shown = run([*COMPAT, "--traceback", script], tmp_path)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "setters.py" in shown.stderr


def test_a_flag_that_is_cut_short_is_another_flag(tmp_path: Path) -> None:
    done = run([*COMPAT, "--device", "2", write(tmp_path, "print(1)")], tmp_path)
    assert done.returncode == 2
    assert "unrecognized arguments: --device. Did you mean `--devices`?" in done.stderr
