"""The collector is off while modules are loaded, and spares what exists where that was asked for."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING

import pytest

from compat.trainer.components.fit import Fit
from compat.upstream.collector import paused, spared
from tests.small import rows, trainer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Node:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def garbage() -> Iterator[weakref.ref[Node]]:
    gc.unfreeze()  # the tests' own
    gc.disable()
    yield weakref.ref(Node())
    gc.enable()
    gc.freeze()


@pytest.fixture
def frozen() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()


def test_paused_while_modules_are_loaded() -> None:
    with paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), paused():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_spared_for_the_block_only(garbage: weakref.ref[Node]) -> None:
    with spared():
        gc.collect()
        assert garbage() is not None
    gc.collect()
    assert garbage() is None
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("frozen")
def test_what_a_process_has_frozen_stays_frozen() -> None:
    # In a process of its own: other threads of the tests may free what is frozen.
    script = """
import gc
from compat.upstream.collector import paused, spared
gc.freeze()
before = gc.get_freeze_count()
with paused(), spared():
    pass
assert gc.get_freeze_count() == before > 0
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_later_runs_collect_as_under_hf(
    tmp_path: Path, garbage: weakref.ref[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fit, "_has_run", False)
    trainer(tmp_path, train_dataset=rows(2)).train()
    assert garbage() is not None, "the first run of a process has none to clear up after"
    trainer(tmp_path, train_dataset=rows(2)).train()
    assert garbage() is None


def test_a_patch_of_free_memory_is_called_at_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fit, "_has_run", False)
    made = trainer(tmp_path, train_dataset=rows(2))
    calls = []
    original = type(made.accelerator).free_memory
    monkeypatch.setattr(
        type(made.accelerator), "free_memory", lambda self, *a: calls.append(1) or original(self, *a)
    )
    made.train()
    made.train()
    assert len(calls) == 2


def test_an_import_collects_nothing() -> None:
    script = (
        "import gc, sys; seen = []; gc.callbacks.append(lambda _, info: seen.append(info['generation']))\n"
        "import compat; compat.Trainer; assert 2 not in seen, seen; assert gc.isenabled()\n"
        "assert 'lightning' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
