from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compat.checkpoint import rotation
from compat.checkpoint.manifest import seal
from compat.checkpoint.rotation import by_age, rotate
from compat.checkpoint.selection import numbered
from tests.small import trainer

if TYPE_CHECKING:
    from pathlib import Path


def made(folder: Path, *steps: int, apart: float = 0.0) -> None:
    for age, step in enumerate(steps):
        path = folder / f"checkpoint-{step}"
        path.mkdir()
        os.utime(path, (1e9 + apart * age, 1e9 + apart * age))


def left(folder: Path) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("limit", "best", "expected"),
    [
        (None, None, {5, 10, 15, 20, 25}),
        (0, None, {5, 10, 15, 20, 25}),
        (5, None, {5, 10, 15, 20, 25}),
        (3, None, {15, 20, 25}),
        (1, None, {25}),
        (3, 5, {5, 20, 25}),
        (2, 5, {5, 25}),
        (1, 25, {25}),
        (1, 5, {5, 25}),
    ],
)
def test_the_oldest_go(tmp_path: Path, limit: int | None, best: int | None, expected: set[int]) -> None:
    made(tmp_path, 5, 10, 15, 20, 25)
    keep = [] if best is None else [tmp_path / f"checkpoint-{best}"]
    removed = rotate(tmp_path, limit, keep)
    assert left(tmp_path) == expected
    assert {path.rpartition("-")[2] for path in removed} == {str(s) for s in {5, 10, 15, 20, 25} - expected}


def test_age_is_told_by_the_clock_where_there_is_one(tmp_path: Path) -> None:
    made(tmp_path, 30, 10, 20, apart=60.0)
    assert [path.rpartition("-")[2] for path in by_age(numbered(tmp_path)[::-1])] == ["30", "10", "20"]
    rotate(tmp_path, 1)
    assert left(tmp_path) == {20}


@pytest.mark.parametrize(("limit", "listed", "looked_at"), [(None, 0, 0), (0, 0, 0), (5, 1, 0), (4, 1, 5)])
def test_no_more_are_looked_at_than_have_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, listed: int, looked_at: int
) -> None:
    made(tmp_path, 5, 10, 15, 20, 25, apart=60.0)
    seen: dict[str, set[str]] = {"listed": set(), "looked_at": set()}
    honest = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        seen["looked_at"].add(os.fspath(path))
        return honest(path, **options)

    def listing(folder: Any) -> list[str]:
        seen["listed"].add(str(folder))
        return numbered(folder)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(rotation, "numbered", listing)
    monkeypatch.setattr(rotation, "remove", lambda _: None)
    rotate(tmp_path, limit)
    looked = set(re.findall(r"checkpoint-\d+", " ".join(seen["looked_at"])))
    assert (len(seen["listed"]), len(looked)) == (listed, looked_at)


def test_the_one_just_saved_stays_whatever_the_clock_says(tmp_path: Path) -> None:
    """HF would remove it where an older run has left higher numbers and times can't be told apart."""
    made(tmp_path, 100, 200)
    trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1).train()
    assert 4 in left(tmp_path)
    assert 2 not in left(tmp_path)


def test_what_cannot_be_removed_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, 1, 2)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(type(tmp_path), "rename", refuse)
    rotate(tmp_path, 1)
    assert left(tmp_path) == {2}


def test_links_to_the_best_are_followed(tmp_path: Path) -> None:
    made(tmp_path, 1, 2, 3)
    (tmp_path / "best").symlink_to(tmp_path / "checkpoint-1")
    rotate(tmp_path, 2, [str(tmp_path / "best")])
    assert {path.name for path in tmp_path.iterdir()} == {"best", "checkpoint-1", "checkpoint-3"}


def test_nothing_goes_before_the_new_one_is_whole(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1)
    run._save_rng_state = lambda folder: _fail() if folder.endswith("4") else None
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert left(tmp_path) == {2}


def _fail() -> None:
    raise KeyboardInterrupt


def test_a_save_that_cannot_be_loaded_does_not_cost_the_one_before(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2).train()
    scheduler = tmp_path / "checkpoint-4" / "scheduler.pt"
    torch.save({"of a class": trainer}, scheduler)
    seal(tmp_path / "checkpoint-4")
    assert rotate(tmp_path, 1, saved=tmp_path / "checkpoint-4") == []
    assert left(tmp_path) == {2, 4}


def test_the_newest_that_can_be_loaded_outlives_newer_ones(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=6, save_strategy="steps", save_steps=2).train()
    for step in (4, 6):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{")
    assert rotate(tmp_path, 1, by_time=False) == [str(tmp_path / "checkpoint-4")]
    assert left(tmp_path) == {2, 6}
