from __future__ import annotations

import contextlib
import copy
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compat.engine.signals import Listener, Survivor
from tests.warm import PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = """
import os, signal, sys
from tests.small import trainer
import transformers

class Kill(transformers.TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))

trainer(sys.argv[1], callbacks=[Kill()]).train()
print("went on")
"""


# SIGTERM: tests/trainer/components/test_shutdown.py.
@pytest.mark.parametrize(("name", "status"), [("SIGINT", -signal.SIGINT)])
def test_the_status_tells_what_ended_the_process(tmp_path: Path, name: str, status: int) -> None:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", SCRIPT, str(tmp_path), name],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == status
    assert "went on" not in ended.stdout


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.give_back()


def test_a_listener_hears_the_first_signal_and_gives_back_what_was_there(listener: Listener) -> None:
    before = signal.getsignal(signal.SIGINT)
    listener.listen([signal.SIGINT, signal.SIGUSR1])
    assert set(listener.taken) == {signal.SIGINT, signal.SIGUSR1}
    os.kill(os.getpid(), signal.SIGUSR1)
    assert listener.heard is signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGINT)
    assert listener.heard is signal.SIGUSR1
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    listener.give_back()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_that_has_come_since_stays(listener: Listener) -> None:
    def own(number: int, frame: object) -> None: ...

    listener.listen([signal.SIGUSR1])
    signal.signal(signal.SIGUSR1, own)
    try:
        listener.give_back()
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_a_handler_below_python_counts(listener: Listener) -> None:
    faulthandler.register(signal.SIGUSR1)
    try:
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        listener.listen([signal.SIGUSR1, signal.SIGUSR2])
        assert set(listener.taken) == {signal.SIGUSR2}
    finally:
        faulthandler.unregister(signal.SIGUSR1)


class Slow(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)
        return index

    def __len__(self) -> int:
        return 20


def test_a_worker_outlives_the_first_signal(listener: Listener) -> None:
    listener.listen([signal.SIGTERM, signal.SIGUSR1])
    loader = torch.utils.data.DataLoader(
        Slow(),
        num_workers=1,
        multiprocessing_context="fork",
        worker_init_fn=Survivor(None, listener),
    )
    batches = iter(loader)
    first = next(batches).item()
    os.kill(batches._workers[0].pid, signal.SIGTERM)
    assert [first, *(batch.item() for batch in batches)] == list(range(20))


def worker_of(listener: Listener, monkeypatch: pytest.MonkeyPatch, seconds: float = 60.0) -> tuple[Any, Any]:
    """The batches of a loader that has drawn its first one, and the process of its worker."""
    monkeypatch.setattr("compat.engine.signals.SECONDS_TO_HEAR", seconds)
    listener.listen([signal.SIGTERM, signal.SIGUSR1])
    loader = torch.utils.data.DataLoader(
        Slow(), num_workers=1, multiprocessing_context="fork", worker_init_fn=Survivor(None, listener)
    )
    batches = iter(loader)
    next(batches)
    return batches, batches._workers[0]


def test_a_worker_outlives_what_its_process_hears_too(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, worker = worker_of(listener, monkeypatch, seconds=0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == 19


def test_a_worker_that_alone_is_told_ends(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, worker = worker_of(listener, monkeypatch, seconds=0.2)
    os.kill(worker.pid, signal.SIGTERM)
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        list(batches)


def test_a_worker_ends_at_once_when_nobody_listens(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, worker = worker_of(listener, monkeypatch)
    listener.give_back()
    began = time.monotonic()
    # As torch and multiprocessing end it; torch may raise at once that it has gone.
    worker.terminate()
    with contextlib.suppress(RuntimeError):
        worker.join(30)
    worker.join(30)
    assert worker.exitcode == -signal.SIGTERM
    assert time.monotonic() - began < 20
    del batches


ENDS = """
import os, sys
import torch
from tests.small import Regression, arguments, rows
import compat

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, index):
        if sys.argv[2] == "raises" and index == 7:
            raise ValueError("of a row")
        return rows()[index]

options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "save_strategy": "epoch"}
trainer = compat.Trainer(Regression(), arguments(sys.argv[1], max_steps=12, **options), train_dataset=Rows())
trainer.train()
print("last line")
"""


@pytest.mark.parametrize(("how", "status"), [("raises", 1), ("succeeds", 0)])
def test_a_script_with_workers_that_stay_ends(tmp_path: Path, how: str, status: int) -> None:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ENDS, str(tmp_path), how],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == status, ended.stderr[-2000:]
    assert ("last line" in ended.stdout) == (how == "succeeds")
    assert ("of a row" in ended.stderr) == (how == "raises")


def test_a_listener_that_is_copied_listens_to_nothing(listener: Listener) -> None:
    listener.listen([signal.SIGUSR1])
    for made in (copy.deepcopy(listener), pickle.loads(pickle.dumps(listener))):  # noqa: S301
        assert made.taken == {}
        assert made.told.value == 0
    survivor = Survivor(None, listener)
    assert copy.deepcopy(survivor) is survivor


def test_a_worker_that_is_spawned_is_told_which_signals(listener: Listener) -> None:
    survivor = Survivor(None, listener)
    listener.listen([signal.SIGTERM, signal.SIGUSR1])
    assert set(pickle.loads(pickle.dumps(survivor)).taken) == {signal.SIGTERM, signal.SIGUSR1}  # noqa: S301
