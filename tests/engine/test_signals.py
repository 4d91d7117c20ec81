from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

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


# SIGTERM: tests/trainer/test_preemption.py.
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


def test_a_worker_that_is_spawned_is_told_which_signals(listener: Listener) -> None:
    survivor = Survivor(None, listener)
    listener.listen([signal.SIGTERM, signal.SIGUSR1])
    assert set(pickle.loads(pickle.dumps(survivor)).taken) == {signal.SIGTERM, signal.SIGUSR1}  # noqa: S301
