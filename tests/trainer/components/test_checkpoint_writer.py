"""Saving while training goes on."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import transformers

import compat
from compat.checkpoint import atomic
from compat.checkpoint.manifest import differences, read
from compat.checkpoint.selection import last_whole
from compat.checkpoint.writer import Writer
from compat.errors import CheckpointError
from compat.trainer.components import checkpoint_writer
from tests.small import Regression, trainer, weights

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
    honest = atomic.seal

    def seal(folder: Any, *more: Any) -> None:
        gate.is_open.wait(10)
        honest(folder, *more)

    monkeypatch.setattr(atomic, "seal", seal)


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
    honest = atomic.seal

    def seal(folder: Path, *more: Any) -> None:
        if folder.name.endswith(f"-{step}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(folder, *more)

    monkeypatch.setattr(atomic, "seal", seal)
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


class Looking(compat.Trainer):
    """Looks for the weights when they have been saved."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        assert output_dir is not None
        self.found = os.path.isfile(os.path.join(output_dir, "model.safetensors"))


def threads_of_weights(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that write weights."""
    names: list[str] = []
    honest = safetensors.torch.serialize_file

    def serialize_file(*args: Any, **kwargs: Any) -> None:
        names.append(threading.current_thread().name)
        honest(*args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "serialize_file", serialize_file)
    return names


def test_the_writer_writes_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threads_of_weights(monkeypatch)
    trainer(tmp_path, **ASYNC).train()
    assert threads == ["compat-writer"] * 3


def test_an_override_finds_the_weights_that_it_has_had_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threads_of_weights(monkeypatch)
    run = trainer(tmp_path, Looking, **ASYNC)
    run.train()
    assert run.found
    assert threads == ["MainThread"] * 3


class Config(transformers.PretrainedConfig):
    """Of a model of one weight."""


class Model(transformers.PreTrainedModel):
    """A model of transformers' kind."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.inner = Regression()
        self.post_init()

    def forward(self, x: Any, labels: Any = None) -> Any:
        return self.inner(x, labels)


class LookingModel(Model):
    """Looks for the weights when they have been saved."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        assert os.path.isfile(os.path.join(save_directory, "model.safetensors"))


@pytest.mark.parametrize(("kind", "thread"), [(Model, "compat-writer"), (LookingModel, "MainThread")])
def test_a_model_finds_the_weights_that_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Model], thread: str
) -> None:
    threads = threads_of_weights(monkeypatch)
    trainer(tmp_path, model=kind(Config()), **ASYNC).train()
    assert threads == [thread] * 3
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-6")


def test_weights_that_share_memory_are_refused_as_ever(tmp_path: Path) -> None:
    found = []
    for options in (ASYNC, SAVING):
        model = Regression()
        model.again = model.out
        with pytest.raises(compat.errors.ArgumentError, match="share memory") as caught:
            trainer(tmp_path, model=model, **options).train()
        found.append(str(caught.value))
    assert found[0] == found[1]


class Interrupted(transformers.TrainerCallback):
    """Ctrl-C while a checkpoint is written, and once more while the end of that is waited for."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            raise KeyboardInterrupt


def interrupted_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate, callback: Interrupted
) -> compat.Trainer:
    """A run that Ctrl-C has ended while its writer waits at a gate."""
    held(monkeypatch, gate)
    run = trainer(folder, callbacks=[callback], **ASYNC)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    return run


@pytest.mark.parametrize("trainers", [1, 2])
def test_a_run_begins_when_the_writer_of_an_interrupted_one_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trainers: int
) -> None:
    gate, interrupted = Gate(0), Interrupted()
    run = interrupted_run(tmp_path, monkeypatch, gate, interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["_partial-checkpoint-2"]
    threading.Timer(0.5, gate.is_open.set).start()
    if trainers == 1:
        run.remove_callback(interrupted)
    else:
        run = trainer(tmp_path, **ASYNC)
    run.train(resume_from_checkpoint="auto")
    assert [entry["step"] for entry in run.state.log_history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in (2, 4, 6)]
    assert "left behind" not in caplog.text
    assert not any(list(differences(path)) for path in tmp_path.iterdir())


def test_what_an_interrupted_run_failed_to_write_is_said_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, interrupted = Gate(0), Interrupted()
    run = interrupted_run(tmp_path, monkeypatch, gate, interrupted)
    honest, failures = atomic.put, [1]

    def put(*where: Any) -> None:
        if failures:
            raise OSError(failures.pop(), "no")
        honest(*where)

    monkeypatch.setattr(atomic, "put", put)
    gate.is_open.set()
    run.remove_callback(interrupted)
    run.train()
    assert "CheckpointError of an earlier run: " in caplog.text
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-6")


class Noting(transformers.TrainerCallback):
    """Puts notes beside a checkpoint that it is told of."""

    def __init__(self, then: Callable[[], object] = bool) -> None:
        self.then = then

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        os.makedirs(folder, exist_ok=True)
        for part in ("first", "second"):
            with open(os.path.join(folder, "notes.txt"), "a", encoding="utf-8") as notes:
                notes.write(f"{part} of {state.global_step}")
            self.then()
            time.sleep(0.05)


def test_what_callbacks_put_into_a_checkpoint_that_is_still_written_stays(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[Noting()], **ASYNC)
    run.train()
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        assert (folder / "notes.txt").read_text() == f"first of {step}second of {step}"
        assert {"notes.txt", "model.safetensors", "optimizer.pt"} <= read(folder).keys()
        assert list(differences(folder)) == []


def test_a_callback_may_wait_for_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "SECONDS_TO_BE_TOLD", 0.1)
    found = []

    class Waiting(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            while last_whole(tmp_path) != str(tmp_path / f"checkpoint-{state.global_step}"):
                time.sleep(0.01)
            found.append(state.global_step)

    trainer(tmp_path, callbacks=[Waiting()], **ASYNC).train()
    assert found == [2, 4, 6]


def test_the_writer_does_one_thing_at_a_time(tmp_path: Path) -> None:
    log: list[str] = []

    def slowly(name: str) -> Callable[[], None]:
        def work() -> None:
            log.append(f"{name} begins")
            time.sleep(0.02)
            log.append(f"{name} ends")

        return work

    writer = Writer()
    writer.start(tmp_path, [slowly("a"), slowly("b")])
    assert writer.is_busy
    writer.start(tmp_path, [slowly("c")])
    writer.finish()
    assert not writer.is_busy
    assert log == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_the_writer_raises_once_what_has_failed(tmp_path: Path) -> None:
    writer = Writer()
    writer.start(tmp_path, [lambda: 1 / 0])
    with pytest.raises(ZeroDivisionError):
        writer.finish()
    writer.finish()
    writer.check()
