from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import compat
from compat.checkpoint.manifest import MANIFEST, seal
from compat.checkpoint.selection import choose
from compat.checkpoint.verify import problems
from compat.errors import ArgumentError
from tests.parity.record import isolated
from tests.small import Regression, rows, trainer

if TYPE_CHECKING:
    from collections.abc import Callable

SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


class Hostile:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def cut(file: Path, _: str) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path, _: str) -> None:
    file.write_bytes(b"")


def flip(file: Path, _: str) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def flip_last(file: Path, _: str) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)


def replace_by_archive(file: Path, target: str) -> None:
    torch.save({"state": Hostile(target)}, file)


def replace_by_pickle(file: Path, target: str) -> None:
    file.write_bytes(pickle.dumps(Hostile(target)))


HARMS = (cut, empty, flip, flip_last, replace_by_archive, replace_by_pickle)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    trainer(folder, **SAVING).train()
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    with isolated():
        args = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            per_device_train_batch_size=2,
        )
        torch.manual_seed(0)
        transformers.Trainer(Regression(), args, train_dataset=rows()).train()
    return folder


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_every_file_of_ours_harmed_is_refused_and_passed_over(
    ours: Path, tmp_path: Path, harm: Callable[[Path, str], None]
) -> None:
    target = tmp_path / "run by a pickle"
    names = sorted(path.name for path in (ours / "checkpoint-4").iterdir())
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "data_state.pth", MANIFEST} <= set(names)
    for name in names:
        folder = tmp_path / name / "run"
        shutil.copytree(ours, folder)
        harm(folder / "checkpoint-4" / name, str(target))
        with pytest.raises(ArgumentError, match=rf"`{name}`: "):
            trainer(folder, **SAVING).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
        choice = choose(True, folder)
        assert choice.checkpoint == str(folder / "checkpoint-2")
        assert f"`{name}`: " in choice.notes()[0]
    assert not target.exists()


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (cut, None),
        (empty, None),
        # Without a manifest, bytes are vouched for by the checksums of an archive.
        (flip, {"rng_state.pth"}),
        (replace_by_archive, None),
        (replace_by_pickle, None),
    ],
    ids=["cut", "empty", "flip", "archive", "pickle"],
)
def test_a_file_of_hf_harmed_is_refused(
    theirs: Path, tmp_path: Path, harm: Callable[[Path, str], None], names: set[str] | None
) -> None:
    target = tmp_path / "run by a pickle"
    found = {path.name for path in (theirs / "checkpoint-4").iterdir()}
    assert problems(theirs / "checkpoint-4") == []
    for name in sorted(names or found):
        folder = tmp_path / name / "checkpoint-4"
        shutil.copytree(theirs / "checkpoint-4", folder)
        harm(folder / name, str(target))
        wrong = problems(folder)
        assert len(wrong) == 1
        assert wrong[0].startswith(f"`{name}`: ")
    assert not target.exists()


def test_what_a_pickle_would_run_is_named(theirs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(theirs / "checkpoint-4", folder)
    torch.save({"state": Hostile("x")}, folder / "training_args.bin")
    (wrong,) = problems(folder)
    assert "posix.mkdir" in wrong


@pytest.mark.parametrize(
    "name", ["../weights.safetensors", "/etc/passwd", "a/../../b", "C:\\weights.bin", ""]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(ours: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(ours / "checkpoint-4", folder)
    index = {"metadata": {}, "weight_map": {"out.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    # Also where a manifest vouches for it.
    for prepare in (lambda: None, lambda: seal(folder)):
        prepare()
        assert problems(folder) == [
            f"`model.safetensors.index.json`: it names {name!r}, which is outside of the checkpoint"
        ]


def test_an_index_needs_its_shards(ours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(ours / "checkpoint-4", folder)
    index = {"metadata": {}, "weight_map": {"out.bias": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "which is missing" in problems(folder)[0]


def test_the_pointer_of_deepspeed_stays_in_the_folder(ours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(ours / "checkpoint-4", folder)
    (folder / "latest").write_text("../checkpoint-2")
    assert "outside of the checkpoint" in problems(folder)[0]
    (folder / "latest").write_text("global_step4")
    assert "which is missing" in problems(folder)[0]


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"])
def test_a_file_that_is_gone_is_missed(ours: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(ours / "checkpoint-4", folder)
    (folder / name).unlink()
    assert any(wrong.startswith(f"`{name}`: missing") for wrong in problems(folder))


def test_weights_may_change_their_format(ours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(ours / "checkpoint-4", folder)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert problems(folder) == []
    (folder / "pytorch_model.bin").unlink()
    assert problems(folder) == [
        "`model.safetensors`: missing",
        "`model.safetensors`: missing, and no weights of another format are there",
    ]


def test_without_its_manifest_a_checkpoint_is_taken_as_it_is(ours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(ours / "checkpoint-4", folder)
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps({**state, "save_steps": 3}))
    with pytest.raises(ArgumentError, match=r"delete `compat_manifest\.json`"):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint=str(folder))
    (folder / MANIFEST).unlink()
    resumed = trainer(tmp_path, **{**SAVING, "max_steps": 5})
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.state.global_step == 5


def test_what_hf_marks_as_incomplete_is_broken(theirs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(theirs / "checkpoint-4", folder)
    (folder / "checkpoint-is-incomplete.txt").write_text("in progress")
    assert problems(folder) == [
        "`checkpoint-is-incomplete.txt`: HF was interrupted while it wrote this checkpoint"
    ]


def test_a_subclass_may_keep_its_weights_elsewhere(tmp_path: Path) -> None:
    class Own(compat.Trainer):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            os.makedirs(str(output_dir), exist_ok=True)
            Path(str(output_dir), "weights.json").write_text(json.dumps(self.model.out.bias.tolist()))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            bias = json.loads(Path(resume_from_checkpoint, "weights.json").read_text())
            self.model.out.bias.data = torch.tensor(bias)

    trainer(tmp_path, Own, **SAVING).train()
    resumed = trainer(tmp_path, Own, **{**SAVING, "max_steps": 5})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    with pytest.raises(ArgumentError, match=r"no checkpoint in .* is whole: .*`model\.safetensors`: missing"):
        choose(True, tmp_path, needs_weights=True)


def test_old_archives_are_read(tmp_path: Path, theirs: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(theirs / "checkpoint-4", folder)
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    torch.save(state, folder / "optimizer.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(folder / "optimizer.pt")
    assert problems(folder) == []
    torch.save(Hostile("x"), folder / "optimizer.pt", _use_new_zipfile_serialization=False)
    assert "posix.mkdir" in problems(folder)[0]
