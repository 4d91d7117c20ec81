"""A run in one process that is told to end, at any moment, by real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from lightning.pytorch.plugins.environments import SLURMEnvironment

from compat.checkpoint.selection import last_whole
from compat.upstream.seams.common import HFTrainer
from tests.small import rows, trainer, weights
from tests.warm import PYTHON

if TYPE_CHECKING:
    from collections.abc import Callable

    import compat

HAS_JIT = "enable_jit_checkpoint" in transformers.TrainingArguments.__dataclass_fields__
UNTIMED = ("runtime", "per_second")

RUN = {
    "max_steps": -1,
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 100,
    "learning_rate": 0.05,
}
"""Six update steps in two epochs."""


def tell(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


class At(transformers.TrainerCallback):
    """Does something when an event fires after a certain number of update steps."""

    def __init__(self, event: str, step: int, act: Callable[[], Any] = tell) -> None:
        self.step, self.act, self.count = step, act, 0
        setattr(self, event, self._fire)

    def _fire(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.count += 1
            if self.count == 1:
                self.act()


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def history(run: compat.Trainer) -> list[dict[str, float]]:
    """What was logged, less what depends on the clock and on where a run began."""
    entries = [
        {name: value for name, value in entry.items() if not any(part in name for part in UNTIMED)}
        for entry in run.state.log_history
    ]
    return [entry for entry in entries if "train_loss" not in entry]


BY_STEPS = {"eval_strategy": "steps", "eval_steps": 2}
BY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.mark.parametrize(
    ("event", "step", "saved", "options"),
    [
        ("on_epoch_begin", 0, 1, {}),
        ("on_substep_end", 1, 2, {}),
        ("on_step_end", 2, 2, BY_STEPS),
        ("on_evaluate", 4, 4, BY_STEPS),
        ("on_log", 4, 4, BY_STEPS),
        ("on_pre_optimizer_step", 2, 3, BY_EPOCH),
        ("on_evaluate", 3, 3, BY_EPOCH),
        ("on_epoch_end", 3, 3, {}),
        ("on_epoch_begin", 3, 4, BY_EPOCH),
    ],
)
def test_the_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, event: str, step: int, saved: int, options: dict[str, Any]
) -> None:
    options = {**RUN, **options}
    undisturbed = trainer(tmp_path / "undisturbed", **options)
    undisturbed.train()
    with pytest.raises(SystemExit) as caught:
        trainer(tmp_path / "out", callbacks=[At(event, step)], **options).train()
    assert caught.value.code == 128 + signal.SIGTERM
    assert checkpoints(tmp_path / "out")[-1] == f"checkpoint-{saved}"
    resumed = trainer(tmp_path / "out", **options)
    resumed.train(resume_from_checkpoint="auto")
    assert weights(resumed) == weights(undisturbed)
    assert history(resumed) == history(undisturbed)


def test_data_that_is_loading_is_waited_for(tmp_path: Path) -> None:
    class Rows(list):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            Rows.reads += 1
            if Rows.reads == 6:
                tell()
            return super().__getitem__(index)

    with pytest.raises(SystemExit):
        trainer(tmp_path, train_dataset=Rows(rows()), **RUN).train()
    assert checkpoints(tmp_path) in (["checkpoint-1"], ["checkpoint-2"])


@pytest.mark.parametrize(
    ("options", "event", "step"),
    [
        ({"save_steps": 2}, "on_step_begin", 1),
        ({"save_steps": 2}, "on_save", 2),
        (BY_EPOCH, "on_step_end", 3),
    ],
)
def test_a_step_is_saved_once(tmp_path: Path, options: dict[str, Any], event: str, step: int) -> None:
    saves: list[int] = []

    class Count(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saves.append(state.global_step)

    with pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[Count(), At(event, step)], **{**RUN, **options}).train()
    assert saves == [3 if options is BY_EPOCH else 2]


def test_what_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[At("on_step_begin", 1)], **RUN).train()
    error = capfd.readouterr().err
    assert "compat: SIGTERM after update step 1: the one in progress is finished" in error
    assert "A second SIGTERM ends it at once." in error
    assert caplog.messages == [
        f"SIGTERM: training ends after update step 2, saved in `{tmp_path / 'checkpoint-2'}`. "
        'To go on from there, start again with `resume_from_checkpoint="auto"`.'
    ]


BEST = {
    **RUN,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": False,
}


def scored() -> Callable[[Any], dict[str, float]]:
    """Scores that find the first evaluation the best."""
    scores = iter(range(100))
    return lambda _: {"score": next(scores)}


def test_the_best_model_is_not_loaded_over_the_last_nor_kept_alone(tmp_path: Path) -> None:
    at_second: list[Any] = []
    run = trainer(
        tmp_path,
        compute_metrics=scored(),
        callbacks=[At("on_step_end", 2), At("on_step_end", 2, lambda: at_second.extend(weights(run)))],
        **BEST,
    )
    with pytest.raises(SystemExit):
        run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert weights(run) == at_second
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert run.args.save_total_limit == 1


@pytest.mark.parametrize(("event", "step"), [("on_step_begin", 5), ("on_save", 6), ("on_train_end", 6)])
def test_a_run_at_its_end_comes_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, event: str, step: int
) -> None:
    ended = At("on_train_end", 6, lambda: None)
    run = trainer(tmp_path / "told", compute_metrics=scored(), callbacks=[At(event, step), ended], **BEST)
    with pytest.raises(SystemExit):
        run.train()
    undisturbed = trainer(tmp_path / "undisturbed", compute_metrics=scored(), **BEST)
    undisturbed.train()
    assert ended.count == 1
    assert weights(run) == weights(undisturbed)
    assert checkpoints(tmp_path / "told") == checkpoints(tmp_path / "undisturbed")
    assert "training has come to its end; what follows `train()` is left out" in caplog.text


def test_what_is_written_in_the_background_is_waited_for(tmp_path: Path) -> None:
    options = {**RUN, "lightning": {"save_async": True}}
    with pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[At("on_step_begin", 1)], **options).train()
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-2")


def test_ctrl_c_is_an_interrupt_that_a_script_can_catch(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    interrupt = At("on_step_begin", 1, lambda: tell(signal.SIGINT))
    run = trainer(tmp_path, callbacks=[interrupt], **RUN)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGINT) is handler
    assert not run.is_in_train
    run.train(resume_from_checkpoint="auto")
    assert run.state.global_step == 6


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        tell(signal.SIGINT)
        tell(signal.SIGINT)

    run = trainer(tmp_path, callbacks=[At("on_step_begin", 1, twice)], **RUN)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.state.global_step == 1
    assert checkpoints(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


TWICE = """
import os, signal, sys
from tests.trainer.components.test_shutdown import At, RUN, tell
from tests.small import trainer

numbers = [getattr(signal, name) for name in sys.argv[2:]]
at = At("on_step_begin", 1, lambda: [tell(number) for number in numbers])
trainer(sys.argv[1], callbacks=[at], **RUN).train()
"""


@pytest.mark.parametrize(
    ("names", "status", "saved"),
    [
        (["SIGUSR1"], 128 + signal.SIGUSR1, ["checkpoint-2"]),
        (["SIGTERM", "SIGTERM"], -signal.SIGTERM, []),
        (["SIGINT", "SIGTERM"], -signal.SIGINT, ["checkpoint-2"]),
    ],
)
def test_statuses(tmp_path: Path, names: list[str], status: int, saved: list[str]) -> None:
    ended = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", TWICE, str(tmp_path), *names],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
        timeout=120,
    )
    assert ended.returncode == status
    assert checkpoints(tmp_path) == saved


def test_a_handler_of_the_scripts_own_is_left_alone(tmp_path: Path) -> None:
    heard: list[int] = []

    def own(number: int, frame: Any) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGTERM, own)
    try:
        run = trainer(tmp_path, callbacks=[At("on_step_begin", 1)], **RUN)
        run.train()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert run.state.global_step == 6


@pytest.mark.parametrize("options", [{"save_strategy": "no"}, {"lightning": {"preemption": False}}], ids=str)
def test_signals_that_are_not_ours(tmp_path: Path, options: dict[str, Any]) -> None:
    found: list[Any] = []

    def look() -> None:
        found.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    trainer(tmp_path, callbacks=[At("on_step_begin", 1, look)], **{**RUN, **options}).train()
    assert found == before


def test_handlers_are_given_back_by_a_run_that_fails(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail() -> None:
        assert signal.getsignal(signal.SIGTERM) is not before
        msg = "broken"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, callbacks=[At("on_step_begin", 1, fail)], **RUN).train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_trains_and_hears_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path, **RUN)
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert run.state.global_step == 6


def test_callbacks_are_those_of_the_script(tmp_path: Path) -> None:
    ours, theirs = (trainer(tmp_path, kind, **RUN) for kind in (None, HFTrainer))
    assert [type(one) for one in ours.callback_handler.callbacks] == [
        type(one) for one in theirs.callback_handler.callbacks
    ]


def test_the_jit_checkpoint_is_this_one(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    options = {**RUN, "save_strategy": "no", "enable_jit_checkpoint": True}
    run = trainer(tmp_path, callbacks=[At("on_substep_end", 1)], **options)
    with pytest.raises(SystemExit) as caught:
        run.train()
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    assert not list(tmp_path.rglob("*incomplete*"))
    names = [type(one).__name__ for one in run.callback_handler.callbacks]
    assert ("JITCheckpointCallback" in names) is HAS_JIT


@pytest.mark.skipif(not HAS_JIT, reason="came with transformers 5")
def test_a_jit_checkpoint_that_is_asked_for_ahead_of_training(tmp_path: Path) -> None:
    run = trainer(tmp_path, **{**RUN, "enable_jit_checkpoint": True})
    manager = next(
        one.jit_manager for one in run.callback_handler.callbacks if getattr(one, "jit_manager", None)
    )
    manager.is_checkpoint_requested = True
    with pytest.raises(SystemExit):
        run.train()
    assert checkpoints(tmp_path) == ["checkpoint-1"]


# SLURM.


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that notes how it was called, with what lay there by then; it fails where `refuses` lies."""
    place = tmp_path / "bin"
    place.mkdir()
    notes = tmp_path / "notes"
    command = place / "scontrol"
    command.write_text(
        f'#!/bin/sh\necho "$@" $(ls {tmp_path}/out) >> {notes}\n'
        f"if [ -e {tmp_path}/refuses ]; then echo requeue is disabled >&2; exit 1; fi\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    return notes


def preempted(folder: Path, number: int = signal.SIGUSR1, **options: Any) -> Any:
    callbacks = [At("on_step_begin", 1, lambda: tell(number))]
    with pytest.raises(SystemExit) as caught:
        trainer(folder / "out", callbacks=callbacks, **{**RUN, **options}).train()
    return caught.value.code


def test_slurm_queues_the_job_again(tmp_path: Path, scontrol: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert preempted(tmp_path) == 128 + signal.SIGUSR1
    assert scontrol.read_text() == "requeue 1234 checkpoint-2\n"
    assert "SLURM's job 1234 is queued again." in caplog.text


def test_slurm_queues_a_part_of_an_array_again(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    preempted(tmp_path)
    assert scontrol.read_text() == "requeue 77_3 checkpoint-2\n"


def test_slurm_may_refuse(tmp_path: Path, scontrol: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "refuses").touch()
    assert preempted(tmp_path) == 128 + signal.SIGUSR1
    assert "job 1234 could not be queued again (requeue is disabled). Submit it" in caplog.text


def test_slurm_is_asked_for_its_own_signal_alone(tmp_path: Path, scontrol: Path) -> None:
    assert preempted(tmp_path, signal.SIGTERM) == 128 + signal.SIGTERM
    assert not scontrol.exists()


@pytest.mark.filterwarnings("ignore:.*srun.*:UserWarning")
def test_slurms_plugin_says_whether_and_when(tmp_path: Path, scontrol: Path) -> None:
    never = {"plugins": [SLURMEnvironment(auto_requeue=False)]}
    assert preempted(tmp_path, lightning=never) == 128 + signal.SIGUSR1
    assert not scontrol.exists()
