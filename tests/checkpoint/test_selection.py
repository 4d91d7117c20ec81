from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import pytest
import transformers

import compat
from compat.checkpoint.atomic import partial_of
from compat.checkpoint.selection import choose, last_whole
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
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        trainer(broken, Interrupted, **SAVING).train()
    assert sorted(path.name for path in broken.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    resumed = trainer(broken, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert losses(resumed) == losses(expected)
    assert last_whole(broken) == str(broken / "checkpoint-6")


def test_a_checkpoint_that_is_written_anew_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    trainer(tmp_path, **SAVING).train()
    before = (tmp_path / "checkpoint-6" / "model.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Interrupted, seed=7, **SAVING).train()
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-6")
    assert (tmp_path / "checkpoint-6" / "model.safetensors").read_bytes() == before
    trainer(tmp_path, seed=7, **SAVING).train()
    assert (tmp_path / "checkpoint-6" / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1.0, "glob'])
def test_one_that_is_broken_is_refused_and_passed_over(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, **SAVING).train()
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    state.unlink() if content is None else state.write_text(content)
    with pytest.raises(
        ArgumentError, match=r"`resume_from_checkpoint=.*checkpoint-6'`: .*`trainer_state.json`"
    ):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    choice = choose(True, tmp_path)
    assert choice.checkpoint == str(tmp_path / "checkpoint-4")
    assert list(choice.passed_over) == [str(tmp_path / "checkpoint-6")]
    assert "checkpoint-6` is passed over, resuming from" in choice.notes()[0]
    assert "`trainer_state.json`: " in choice.notes()[0]
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(caplog.handler)
    try:
        resumed = trainer(tmp_path, **SAVING)
        resumed.train(resume_from_checkpoint=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert choice.notes()[0] in caplog.messages
    assert resumed.state.global_step == 6


def test_one_that_was_passed_over_is_not_taken_after_all(tmp_path: Path) -> None:
    trainer(tmp_path, **{**SAVING, "max_steps": 2}).train()
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ArgumentError, match=r"no checkpoint in .* is whole: .*`optimizer\.pt`: 0 bytes"):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)
    with pytest.raises(ArgumentError, match="Nothing is begun anew over them"):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint="auto")
    (tmp_path / "checkpoint-2").rename(tmp_path / "damaged")
    afresh = trainer(tmp_path, **SAVING)
    afresh.train(resume_from_checkpoint="auto")
    assert len(losses(afresh)) == 6


def test_where_none_is_there_hf_says_so_and_auto_starts_afresh(tmp_path: Path) -> None:
    fresh = trainer(tmp_path, **SAVING)
    fresh.train()
    for folder in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(folder)
    assert last_whole(tmp_path) is None
    assert last_whole(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)
    again = trainer(tmp_path, **SAVING)
    again.train(resume_from_checkpoint="auto")
    assert losses(again) == losses(fresh)


@pytest.mark.parametrize("where", ["argument", "call"])
def test_auto_resumes_where_there_is_something(tmp_path: Path, where: str) -> None:
    expected = trainer(tmp_path / "expected", **SAVING)
    expected.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", Interrupted, **SAVING).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    options = {"resume_from_checkpoint": "auto"} if where == "argument" else {}
    resumed = trainer(tmp_path / "run", **SAVING, **options)
    steps: list[int] = []
    resumed.add_callback(Steps(steps))
    resumed.train(**({} if where == "argument" else {"resume_from_checkpoint": "auto"}))
    assert steps == [3, 4, 5, 6]
    assert losses(resumed)[-4:] == losses(expected)[-4:]


class Steps(transformers.TrainerCallback):
    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def on_step_end(self, args: object, state: transformers.TrainerState, *_: object, **__: object) -> None:
        self.seen.append(state.global_step)


def test_auto_goes_on_with_early_stopping_where_it_was(tmp_path: Path) -> None:
    options = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "score",
        "load_best_model_at_end": True,
        "eval_dataset": trainer(tmp_path).train_dataset,
        "compute_metrics": lambda _: {"score": 1.0},
    }

    def stopping() -> list[transformers.TrainerCallback]:
        return [transformers.EarlyStoppingCallback(3)]

    whole = trainer(tmp_path / "whole", callbacks=stopping(), **options)
    whole.train()
    assert whole.state.global_step == 4
    trainer(tmp_path / "run", callbacks=stopping(), **{**options, "max_steps": 3}).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    resumed = trainer(tmp_path / "run", callbacks=stopping(), **options)
    resumed.train(resume_from_checkpoint="auto")
    assert resumed.state.global_step == 4


def test_what_a_killed_run_has_left_is_swept(tmp_path: Path) -> None:
    trainer(tmp_path, **SAVING).train()
    whole, torn = tmp_path / "checkpoint-6", tmp_path / "checkpoint-4"
    whole.rename(partial_of(whole))
    torn.rename(partial_of(torn))
    (partial_of(torn) / "compat_manifest.json").unlink()
    (tmp_path / "_removed-checkpoint-1").mkdir()
    (tmp_path / "_mine-checkpoint-1").mkdir()
    resumed = trainer(tmp_path, **{**SAVING, "max_steps": 8})
    seen: list[int] = []
    resumed.add_callback(Steps(seen))
    resumed.train(resume_from_checkpoint="auto")
    assert seen == [7, 8]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-2", "checkpoint-6", "checkpoint-8", "_mine-checkpoint-1"}
