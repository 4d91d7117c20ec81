from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from compat.verification.mirror import COPIED, Mirror

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working folder with results of an earlier run, beside a folder of data."""
    place = tmp_path / "project"
    for folder in ("runs/first/checkpoint-1", "runs/second"):
        (place / folder).mkdir(parents=True)
    (place / "runs" / "first" / "model").write_text("precious")
    (place / "metrics.json").write_text("{}")
    (place / "big.bin").write_bytes(bytes(COPIED + 1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("rows")
    return place


def test_relative_paths_lead_to_the_same_files(place: Path, tmp_path: Path) -> None:
    inside = Mirror(str(tmp_path / "root")).make(str(place))
    for path, content in (
        ("../data/train.csv", "rows"),
        ("runs/first/model", "precious"),
        ("metrics.json", "{}"),
    ):
        with open(os.path.join(inside, path)) as file:
            assert file.read() == content
    assert os.path.islink(os.path.join(inside, "big.bin"))


def test_what_is_written_stays_in_the_tree(place: Path, tmp_path: Path) -> None:
    mirror = Mirror(str(tmp_path / "root"))
    inside = mirror.make(str(place))
    mirror.free(os.path.join(inside, "runs", "first"))
    os.mkdir(os.path.join(inside, "runs", "first"))
    for path in ("runs/first/model", "metrics.json", "new.txt"):
        with open(os.path.join(inside, path), "w") as file:
            file.write("other")
        assert mirror.is_new(os.path.join(inside, path))
    assert (place / "runs" / "first" / "model").read_text() == "precious"
    assert (place / "metrics.json").read_text() == "{}"
    assert not (place / "new.txt").exists()
    assert os.path.islink(os.path.join(inside, "runs", "second"))


def test_a_path_that_is_free_stays_as_it_is(place: Path, tmp_path: Path) -> None:
    mirror = Mirror(str(tmp_path / "root"))
    inside = mirror.make(str(place))
    mirror.free(os.path.join(inside, "runs", "first"))
    os.mkdir(os.path.join(inside, "runs", "first"))
    mirror.free(os.path.join(inside, "runs", "first"))
    mirror.free(os.path.join(inside, "runs", "first", "checkpoint-1"))
    assert os.path.isdir(os.path.join(inside, "runs", "first"))
    assert not os.path.exists(os.path.join(inside, "runs", "first", "checkpoint-1"))


def test_a_copy_that_nobody_writes_is_not_new(place: Path, tmp_path: Path) -> None:
    mirror = Mirror(str(tmp_path / "root"))
    inside = mirror.make(str(place))
    assert not mirror.is_new(os.path.join(inside, "metrics.json"))
    assert not mirror.is_new(os.path.join(inside, "big.bin"))
    (place / "metrics.json").write_text("of another program, meanwhile")
    assert not Mirror(mirror.root).is_new(os.path.join(inside, "metrics.json"))
