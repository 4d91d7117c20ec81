"""Scripts of 2024, unedited, under `compat run`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.warm import PYTHON

SCRIPTS = Path(__file__).parent / "scripts"

OLD = """--do_train --do_eval --overwrite_output_dir --no_cuda --evaluation_strategy epoch
    --save_strategy epoch --load_best_model_at_end --metric_for_best_model accuracy
    --per_gpu_train_batch_size 4 --warmup_ratio 0.25 --num_train_epochs 2 --learning_rate 1e-2
    --logging_steps 1 --report_to none --disable_tqdm True --save_safetensors False --group_by_length
    --gradient_accumulation_steps 2"""

NEW = """--do_train --do_eval --use_cpu --eval_strategy epoch --save_strategy epoch
    --load_best_model_at_end --metric_for_best_model accuracy --per_device_train_batch_size 4
    --warmup_steps 0.25 --num_train_epochs 2 --learning_rate 1e-2 --logging_steps 1 --report_to none
    --disable_tqdm True --train_sampling_strategy group_by_length --gradient_accumulation_steps 2"""


def run(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    return subprocess.run(
        [PYTHON, "-m", "compat", "run", *words],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
        check=False,
    )


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("scripts") / "classify"
    done = run(folder, [str(SCRIPTS / "classify_2024.py"), "--output_dir", str(folder), *OLD.split()])
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_a_script_of_2024_trains_evaluates_and_saves(classified: tuple[Path, str]) -> None:
    folder, _ = classified
    state = json.loads((folder / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 6
    assert all(entry["marked"] == 1 for entry in state["log_history"])
    assert [entry["step"] for entry in state["log_history"] if "eval_accuracy" in entry][:2] == [3, 6]
    assert {"README.md", "train_results.json", "eval_results.json", "pytorch_model.bin"} <= {
        file.name for file in folder.iterdir()
    }


def test_each_old_name_is_told_once_with_its_new_one(classified: tuple[Path, str]) -> None:
    _, shown = classified
    for old, new in {
        "evaluation_strategy": "eval_strategy",
        "no_cuda": "use_cpu",
        "per_gpu_train_batch_size": "per_device_train_batch_size",
        "warmup_ratio": "warmup_steps",
        "group_by_length": "train_sampling_strategy",
    }.items():
        assert shown.count(f"`{old}` is an old name: say it by `{new}`") == 1
    assert shown.count("`save_safetensors` is an old name") == 1


def test_todays_spelling_gives_the_same_numbers(classified: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = classified
    source = (SCRIPTS / "classify_2024.py").read_text()
    modern = tmp_path / "modern.py"
    modern.write_text(source.replace("    assert training_args", "    # assert training_args"))
    done = run(tmp_path / "out", [str(modern), "--output_dir", str(tmp_path / "out" / "run"), *NEW.split()])
    assert done.returncode == 0, done.stderr
    histories = [
        [
            {
                name: value
                for name, value in entry.items()
                if "runtime" not in name and "per_second" not in name
            }
            for entry in json.loads((place / "trainer_state.json").read_text())["log_history"]
        ]
        for place in (folder, tmp_path / "out" / "run")
    ]
    assert histories[0] == histories[1]
