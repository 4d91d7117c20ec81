from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import compat
from compat.checkpoint.whole import is_whole, last_whole
from compat.errors import ArgumentError
from tests.small import losses, trainer

if TYPE_CHECKING:
    from pathlib import Path

SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


class Interrupted(compat.Trainer):
    """Loses its power while it writes its third checkpoint."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if output_dir.endswith("checkpoint-6"):
            raise KeyboardInterrupt


def test_a_run_resumes_from_the_last_checkpoint_that_is_whole(tmp_path: Path) -> None:
    expected = trainer(tmp_path / "expected", **SAVING)
    expected.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "broken", Interrupted, **SAVING).train()
    assert (tmp_path / "broken" / "checkpoint-6" / "optimizer.pt").exists()
    assert last_whole(tmp_path / "broken") == str(tmp_path / "broken" / "checkpoint-4")
    resumed = trainer(tmp_path / "broken", **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert losses(resumed) == losses(expected)
    assert last_whole(tmp_path / "broken") == str(tmp_path / "broken" / "checkpoint-6")


def test_a_checkpoint_that_is_written_anew_is_not_whole_until_it_is(tmp_path: Path) -> None:
    trainer(tmp_path, **SAVING).train()
    assert is_whole(tmp_path / "checkpoint-6")
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Interrupted, **SAVING).train()
    assert not is_whole(tmp_path / "checkpoint-6")


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1.0, "glob'])
def test_one_that_is_not_whole_is_refused(tmp_path: Path, content: str | None) -> None:
    trainer(tmp_path, **SAVING).train()
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    state.unlink() if content is None else state.write_text(content)
    with pytest.raises(ArgumentError, match=r"`resume_from_checkpoint=.*checkpoint-6'`: .* last whole one"):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_where_none_is_whole_hf_says_so(tmp_path: Path) -> None:
    trainer(tmp_path, **SAVING).train()
    for folder in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(folder)
    assert last_whole(tmp_path) is None
    assert last_whole(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)
