"""Saving while training goes on."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import transformers

from compat.checkpoint import partial
from compat.checkpoint.manifest import differences, read
from compat.checkpoint.whole import last_whole
from compat.checkpoint.writer import Writer
from compat.errors import CheckpointError
from tests.small import trainer, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
ASYNC = {**SAVING, "lightning": {"save_async": True}}


class Gate(transformers.TrainerCallback):
    """Holds the writer back until the end of some step."""

    def __init__(self, step: int) -> None:
        self.step, self.is_open = step, threading.Event()
        self.seen: list[tuple[int, bool]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen.append((state.global_step, os.path.exists(os.path.join(args.output_dir, "checkpoint-2"))))
        if state.global_step == self.step:
            self.is_open.set()
            while not os.path.exists(os.path.join(args.output_dir, "checkpoint-2")):
                time.sleep(0.001)


def held(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    honest = partial.seal

    def seal(folder: Any) -> None:
        gate.is_open.wait(10)
        honest(folder)

    monkeypatch.setattr(partial, "seal", seal)


def test_training_goes_on_while_a_snapshot_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking = trainer(tmp_path / "blocking", **SAVING)
    blocking.train()
    gate = Gate(4)
    held(monkeypatch, gate)
    run = trainer(tmp_path / "async", callbacks=[gate], **ASYNC)
    run.train()
    assert gate.seen[:4] == [(1, False), (2, False), (3, False), (4, False)]
    assert weights(run) == weights(blocking)
    for step in (2, 4, 6):
        ours, theirs = (tmp_path / kind / f"checkpoint-{step}" for kind in ("async", "blocking"))
        assert list(differences(ours)) == []
        # The arguments and the state hold the folder's name and the option.
        same = set(read(ours)) - {"training_args.bin", "trainer_state.json"}
        assert {name: read(ours)[name] for name in same} == {name: read(theirs)[name] for name in same}


@pytest.mark.parametrize("step", [2, 6], ids=["within", "last"])
def test_what_the_writer_fails_with_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    honest = partial.seal

    def seal(folder: Path) -> None:
        if folder.name.endswith(f"-{step}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(folder)

    monkeypatch.setattr(partial, "seal", seal)
    run = trainer(tmp_path, **ASYNC)
    with pytest.raises(CheckpointError, match=f"checkpoint-{step}`: not saved .*No space left"):
        run.train()
    assert run.state.global_step <= min(step + 2, 6)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{s}" for s in range(2, step, 2)}
    monkeypatch.undo()
    run.train(resume_from_checkpoint="auto")
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-6")


def test_the_best_is_loaded_once_it_is_written(tmp_path: Path) -> None:
    options = {
        **ASYNC,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "score",
        "load_best_model_at_end": True,
        "save_total_limit": 1,
    }
    found = []
    for flags in ({"save_async": True}, {}):
        run = trainer(
            tmp_path / str(flags),
            **{**options, "lightning": flags},
            compute_metrics=lambda _: {"score": -abs(4 - len(found))},
        )
        run.train()
        found.append((weights(run), {path.name for path in (tmp_path / str(flags)).iterdir()}))
    assert found[0] == found[1]


def test_the_best_may_have_lost_what_is_not_loaded(tmp_path: Path) -> None:
    class Pruning(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()

    options = {**SAVING, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    run = trainer(
        tmp_path,
        callbacks=[Pruning()],
        metric_for_best_model="score",
        load_best_model_at_end=True,
        compute_metrics=lambda _: {"score": -float(run.state.global_step)},
        **options,
    )
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_after_a_failed_copy_the_next_save_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, **ASYNC)
    monkeypatch.setattr(run, "_save_rng_state", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train()
    monkeypatch.undo()
    run.train()
    assert "optimizer.pt" in read(tmp_path / "checkpoint-2")


def test_what_is_written_in_the_background_is_pushed(tmp_path: Path) -> None:
    pushed: list[tuple[str, bool]] = []
    run = trainer(tmp_path, **ASYNC)
    run._push_from_checkpoint = lambda folder: pushed.append((folder, os.path.isdir(folder)))
    run.args.push_to_hub = True
    run.train()
    assert pushed == [(str(tmp_path / f"checkpoint-{step}"), True) for step in (2, 4, 6)]


def test_the_writer_does_one_thing_at_a_time() -> None:
    log: list[str] = []

    def slowly(name: str) -> Callable[[], None]:
        def work() -> None:
            log.append(f"{name} begins")
            time.sleep(0.02)
            log.append(f"{name} ends")

        return work

    writer = Writer()
    writer.start([slowly("a"), slowly("b")])
    assert writer.is_busy
    writer.start([slowly("c")])
    writer.finish()
    assert not writer.is_busy
    assert log == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_the_writer_raises_once_what_has_failed() -> None:
    writer = Writer()
    writer.start([lambda: 1 / 0])
    with pytest.raises(ZeroDivisionError):
        writer.finish()
    writer.finish()
    writer.check()
