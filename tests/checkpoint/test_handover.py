from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compat.checkpoint import manifest
from compat.checkpoint.handover import hand_over, reconcile, take_back
from compat.checkpoint.manifest import MANIFEST
from compat.checkpoint.verify import problems
from compat.errors import BrokenCheckpointError
from tests.small import trainer

if TYPE_CHECKING:
    from collections.abc import Callable

SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


class Uploads(transformers.TrainerCallback):
    """Changes the checkpoint of a step, and then fails."""

    def __init__(self, change: Callable[[Path], object], error: BaseException | None, step: int = 2) -> None:
        self.change, self.error, self.step = change, error, step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step != self.step:
            return
        self.change(Path(args.output_dir, f"checkpoint-{state.global_step}"))
        if self.error is not None:
            raise self.error


def tag(checkpoint: Path) -> None:
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "trial_name": "tagged"}))
    (checkpoint / "uploaded.txt").write_text("yes")


@pytest.mark.parametrize("error", [ConnectionError("no hub"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_checkpoint_that_a_failing_callback_has_changed_is_whole(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        trainer(tmp_path, callbacks=[Uploads(tag, error)], **SAVING).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert problems(checkpoint) == []
    assert {"uploaded.txt", "trainer_state.json"} <= json.loads((checkpoint / MANIFEST).read_text())[
        "files"
    ].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]
    resumed = trainer(tmp_path, **SAVING)
    resumed.train(resume_from_checkpoint="auto")
    assert (resumed.state.global_step, resumed.state.trial_name) == (4, "tagged")


def test_what_has_its_old_times_again_is_sealed_as_it_is(tmp_path: Path) -> None:
    def swap(checkpoint: Path) -> None:
        file = checkpoint / "README.md"
        file.write_text("new")
        os.utime(file, (1e9, 1e9))

    trainer(tmp_path, callbacks=[Uploads(swap, None)], **SAVING).train()
    assert problems(tmp_path / "checkpoint-4") == []


def halfway(file: Path) -> None:
    file.write_text(file.read_text()[:20])


def weights_rewritten(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)


@pytest.mark.parametrize(
    "change",
    [
        tag,
        weights_rewritten,
        lambda checkpoint: halfway(checkpoint / "trainer_state.json"),
        lambda checkpoint: (checkpoint / "optimizer.pt").unlink(),
        lambda checkpoint: halfway(checkpoint / MANIFEST),
    ],
    ids=["whole", "weights", "half", "gone", "manifest"],
)
def test_a_kill_among_callbacks_costs_at_most_their_change(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    trainer(tmp_path, **{**SAVING, "max_steps": 2}).train()
    checkpoint = tmp_path / "checkpoint-2"
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    hand_over(checkpoint)
    change(checkpoint)
    (said,) = reconcile(tmp_path) or ("",)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name in before} == before
    assert problems(checkpoint) == []
    assert not said or said.startswith(f"`{checkpoint}`: a run was killed while a callback changed it; ")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_large_file_that_was_written_into_counts_as_meant_if_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compat.checkpoint.handover._COPIED", 0)
    trainer(tmp_path, **{**SAVING, "max_steps": 2}).train()
    checkpoint = tmp_path / "checkpoint-2"
    hand_over(checkpoint)
    file = checkpoint / "trainer_state.json"
    with open(file, "r+", encoding="utf-8") as stream:
        text = stream.read()
        stream.seek(0)
        stream.write(text + " ")
    assert reconcile(tmp_path)[0].endswith("taken as it is now (trainer_state.json).")
    assert problems(checkpoint) == []
    hand_over(checkpoint)
    os.truncate(file, 10)
    assert reconcile(tmp_path)[0].endswith("what it has left of trainer_state.json cannot be read.")
    assert problems(checkpoint)[0].startswith("`trainer_state.json`: ")


def test_what_was_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path, **{**SAVING, "max_steps": 2}).train()
    checkpoint = tmp_path / "checkpoint-2"
    read: list[str] = []

    digest = manifest.flush_and_digest
    monkeypatch.setattr(
        manifest, "flush_and_digest", lambda file, *rest: read.append(file.name) or digest(file, *rest)
    )
    known = hand_over(checkpoint)
    tag(checkpoint)
    take_back(checkpoint, known)
    assert sorted(read) == ["trainer_state.json", "uploaded.txt"]
    assert problems(checkpoint) == []


def test_what_was_taken_back_is_not_undone_where_the_double_is_left(tmp_path: Path) -> None:
    trainer(tmp_path, **{**SAVING, "max_steps": 2}).train()
    checkpoint = tmp_path / "checkpoint-2"
    known = hand_over(checkpoint)
    tag(checkpoint)
    take_back(checkpoint, known)
    assert (tmp_path / "_held-checkpoint-2" / "trainer_state.json").is_file()
    assert reconcile(tmp_path) == []
    assert json.loads((checkpoint / "trainer_state.json").read_text())["trial_name"] == "tagged"
    assert problems(checkpoint) == []
    assert not (tmp_path / "_held-checkpoint-2").exists()


def test_auto_does_not_begin_anew_over_checkpoints_that_were_changed(tmp_path: Path) -> None:
    trainer(tmp_path, **SAVING).train()
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text() + " ")
    with pytest.raises(BrokenCheckpointError, match=r"Nothing is begun anew.*delete `compat_man"):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint="auto")
    assert state.is_file()
    (tmp_path / "checkpoint-4" / MANIFEST).unlink()
    resumed = trainer(tmp_path, **{**SAVING, "max_steps": 6})
    resumed.train(resume_from_checkpoint="auto")
    assert resumed.state.global_step == 6


def test_auto_begins_anew_where_nothing_was_written_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"half")
    begun = trainer(tmp_path, **SAVING)
    begun.train(resume_from_checkpoint="auto")
    assert begun.state.global_step == 4
