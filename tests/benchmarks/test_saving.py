from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.parity.record import isolated

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).with_name("saving.py")


@pytest.fixture(scope="module")
def saving() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("saving_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_each_contender_saves_as_often_and_holds_training_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = {}
    for contender in saving.CONTENDERS:
        with isolated():
            found = saving.work(contender, "tiny")
        assert found["contender"] == contender
        assert len(found["pauses"]) == 4
        assert 0 < sum(found["pauses"]) < found["seconds"] * 1e3
        assert found["bytes"] > 10_000
        assert found["memory"] >= 0
        runs[contender] = [found]
    assert list(tmp_path.iterdir()) == []
    rows = saving.tabulate(runs).splitlines()
    assert rows[2].startswith("| transformers.Trainer | 1.00 | 1.00 | ")
    assert len(rows) == 6
