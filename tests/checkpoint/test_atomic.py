from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import compat
from compat.checkpoint import atomic
from compat.checkpoint.atomic import begin, commit, partial_of, remove, sweep
from compat.checkpoint.manifest import MANIFEST, differences, read
from compat.checkpoint.selection import last_whole
from compat.errors import CheckpointError
from tests.small import losses, trainer, weights

if TYPE_CHECKING:
    from collections.abc import Callable

SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def written(folder: Path, content: str = "new") -> None:
    (begin(folder) / "file.txt").write_text(content)


def test_a_checkpoint_appears_at_once(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    written(checkpoint)
    assert names(tmp_path) == {"_partial-checkpoint-1"}
    commit(checkpoint)
    assert names(tmp_path) == {"checkpoint-1"}
    assert names(checkpoint) == {"file.txt", MANIFEST}
    assert list(differences(checkpoint)) == []


def test_one_replaces_another_and_keeps_what_others_put_there(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    written(checkpoint, "old")
    (partial_of(checkpoint) / "vocab.txt").write_text("of the old one")
    commit(checkpoint)
    (checkpoint / "notes").mkdir()
    (checkpoint / "notes" / "mine.txt").write_text("mine")
    (checkpoint / "rng_state_1.pth").write_text("of another process")
    written(checkpoint)
    commit(checkpoint)
    assert (checkpoint / "file.txt").read_text() == "new"
    assert names(checkpoint) == {"file.txt", "notes", MANIFEST}
    assert list(differences(checkpoint)) == []
    assert names(tmp_path) == {"checkpoint-1"}


def test_what_others_write_while_it_is_sealed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    honest = atomic.seal

    def seal(folder: Path, *more: Any) -> None:
        honest(folder, *more)
        checkpoint.mkdir()
        (checkpoint / "notes.txt").write_text("mine")

    monkeypatch.setattr(atomic, "seal", seal)
    written(checkpoint)
    commit(checkpoint)
    assert (checkpoint / "notes.txt").read_text() == "mine"
    assert read(checkpoint).keys() == {"file.txt", "notes.txt"}
    assert list(differences(checkpoint)) == []
    assert names(tmp_path) == {"checkpoint-1"}


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_killed_while_it_takes_the_place_of_what_others_wrote(tmp_path: Path, renamed: int) -> None:
    checkpoint, older = tmp_path / "checkpoint-1", tmp_path / "_replaced-checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "notes.txt").write_text("mine")
    written(checkpoint)
    atomic.seal(partial_of(checkpoint))
    if renamed > 0:
        checkpoint.rename(older)
    if renamed > 1:
        partial_of(checkpoint).rename(checkpoint)
    sweep(tmp_path)
    assert (checkpoint / "file.txt").read_text() == "new"
    assert names(tmp_path) == {"checkpoint-1"}
    assert list(differences(checkpoint)) == []
    assert (checkpoint / "notes.txt").read_text() == "mine"
    assert read(checkpoint).keys() == {"file.txt", "notes.txt"}


def test_a_file_with_the_name_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").write_text("mine")
    run = trainer(tmp_path, **SAVING)
    with pytest.raises(CheckpointError, match="a file has the name of a checkpoint"):
        run.train()
    assert (tmp_path / "checkpoint-2").read_text() == "mine"


def test_left_overs(tmp_path: Path) -> None:
    # Killed between the two renames of a replacement, before and after the new one had its manifest.
    written(tmp_path / "checkpoint-1", "old")
    commit(tmp_path / "checkpoint-1")
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "_replaced-checkpoint-2")
    (tmp_path / "checkpoint-1").rename(tmp_path / "_replaced-checkpoint-1")
    written(tmp_path / "checkpoint-1")
    assert len(sweep(tmp_path)) == 3
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}
    assert (tmp_path / "checkpoint-1" / "file.txt").read_text() == "old"
    assert sweep(tmp_path) == []
    assert sweep(tmp_path / "nowhere") == []


def test_nobody_sees_half_of_what_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "checkpoint-1")
    commit(tmp_path / "checkpoint-1")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    remove(tmp_path / "checkpoint-1")
    assert names(tmp_path) == {"_removed-checkpoint-1"}


class Limited(compat.Trainer):
    """Lets no file grow beyond a size while it writes its second checkpoint, as a disk that is full."""

    size = 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        limit = self.size if self.state.global_step == 4 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            super()._save_checkpoint(model, trial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [0, 100, 600, 2000])
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    run: Any = trainer(tmp_path, Limited, **SAVING)
    run.size = size
    with pytest.raises(CheckpointError, match=r"checkpoint-4`: not saved \(.*earlier checkpoints are"):
        run.train()
    assert names(tmp_path) == {"checkpoint-2"}
    assert list(differences(tmp_path / "checkpoint-2")) == []
    assert run.state.global_step == 4
    expected = trainer(tmp_path / "expected", **SAVING)
    expected.train()
    run.size = resource.RLIM_INFINITY
    run.train(resume_from_checkpoint=True)
    assert weights(run) == weights(expected)
    assert losses(run) == losses(expected)


class Meddling(transformers.TrainerCallback):
    def __init__(self, step: int, meddle: Callable[[], None]) -> None:
        self.step, self.meddle = step, meddle

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.meddle()


def test_a_folder_that_is_gone_is_made_again(tmp_path: Path) -> None:
    run = trainer(
        tmp_path / "run", callbacks=[Meddling(3, lambda: shutil.rmtree(tmp_path / "run"))], **SAVING
    )
    run.train()
    assert names(tmp_path / "run") == {"checkpoint-4", "checkpoint-6"}


def test_the_older_one_comes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "checkpoint-1", "old")
    commit(tmp_path / "checkpoint-1")
    written(tmp_path / "checkpoint-1")
    honest = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith("_partial-"):
            raise OSError(errno.EBUSY, "busy")
        return honest(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="busy"):
        commit(tmp_path / "checkpoint-1")
    assert (tmp_path / "checkpoint-1" / "file.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("rename", OSError(errno.ESTALE, "Stale file handle")),
        ("rename", OSError(errno.EXDEV, "Invalid cross-device link")),
        ("mkdir", PermissionError(errno.EACCES, "Permission denied")),
        ("mkdir", OSError(errno.EROFS, "Read-only file system")),
    ],
    ids=["stale", "across devices", "permission", "read-only"],
)
def test_what_a_file_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: OSError
) -> None:
    honest = getattr(Path, function)

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if "checkpoint-4" in self.name:
            raise error
        return honest(self, *args, **options)

    monkeypatch.setattr(Path, function, refuse)
    run = trainer(tmp_path, **SAVING)
    with pytest.raises(CheckpointError, match=f"checkpoint-4`: not saved .*{error.strerror}"):
        run.train()
    assert names(tmp_path) == {"checkpoint-2"}
    monkeypatch.undo()
    run.train(resume_from_checkpoint="auto")
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-6")


def test_a_folder_that_takes_no_files_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    run = trainer(tmp_path, **SAVING)
    with pytest.raises(
        CheckpointError, match=r"`output_dir=.*`: no checkpoint can be saved there .*Read-only"
    ):
        run.train()
    assert run.state.global_step == 0
    trainer(tmp_path, max_steps=1).train()


def test_the_best_is_not_one_that_was_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="score",
        load_best_model_at_end=True,
        compute_metrics=lambda _: {"score": float(run.state.global_step)},
        **SAVING,
    )
    monkeypatch.setattr(os, "fsync", lambda _: _no_space() if run.state.global_step == 4 else None)
    with pytest.raises(CheckpointError):
        run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def _no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Adding(transformers.TrainerCallback):
    """Writes into a checkpoint once it is told of it, and takes something from it."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        (folder / "adapter").mkdir()
        (folder / "adapter" / "notes.txt").write_text("mine")
        (folder / "scheduler.pt").unlink()
        (folder / "optimizer.pt").unlink()
        (folder / "training_args.bin").write_bytes((folder / "training_args.bin").read_bytes())


def test_callbacks_may_change_a_checkpoint_that_they_are_told_of(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[Adding()], **SAVING).train()
    assert list(differences(tmp_path / "checkpoint-6")) == []
    resumed = trainer(tmp_path, **{**SAVING, "max_steps": 7})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 7
