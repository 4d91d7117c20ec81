"""Files are flushed, and their digests taken, while a checkpoint is still being written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from compat.checkpoint import flushing, io, manifest
from compat.checkpoint.flushing import LARGE, flush_written
from compat.checkpoint.manifest import differences, read, seal

STATE = {"exp_avg": torch.arange(3 * LARGE // 4, dtype=torch.float32)}


@pytest.fixture
def sealed_late(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read when the checkpoint is sealed."""
    names: list[str] = []
    honest = manifest.flush_and_digest
    monkeypatch.setattr(
        manifest, "flush_and_digest", lambda file, *rest: names.append(file.name) or honest(file, *rest)
    )
    return names


def digest(file: Path) -> str:
    return xxhash.xxh3_128(file.read_bytes()).hexdigest()


def test_a_state_has_its_digest_when_it_is_written(tmp_path: Path, sealed_late: list[str]) -> None:
    with flushing.flushing(tmp_path):
        io.save_plain(STATE, str(tmp_path / "optimizer.pt"))
        seal(tmp_path)
    assert sealed_late == []
    file = tmp_path / "optimizer.pt"
    assert read(tmp_path) == {"optimizer.pt": {"size": file.stat().st_size, "xxh3_128": digest(file)}}
    assert torch.equal(io.load_plain(str(file))["exp_avg"], STATE["exp_avg"])


def test_a_state_has_the_bytes_of_torch_save(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    torch.save(STATE, tmp_path / "hf" / "optimizer.pt")
    with flushing.flushing(tmp_path):
        io.save_plain(STATE, str(tmp_path / "optimizer.pt"))
    assert (tmp_path / "optimizer.pt").read_bytes() == (tmp_path / "hf" / "optimizer.pt").read_bytes()


def test_a_large_file_is_read_once(tmp_path: Path, sealed_late: list[str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(LARGE))
    (tmp_path / "config.json").write_bytes(b"{}")
    with flushing.flushing(tmp_path):
        flush_written()
        seal(tmp_path)
    assert sealed_late == ["config.json"]
    assert list(differences(tmp_path)) == []


@pytest.mark.parametrize("by", ["flush_written", "following"])
def test_what_is_changed_later_is_read_again(tmp_path: Path, sealed_late: list[str], by: str) -> None:
    """Also in the same tick of the file system's clock, at the same size."""
    file = tmp_path / "optimizer.pt"
    with flushing.flushing(tmp_path):
        if by == "following":
            io.save_plain(STATE, str(file))
        else:
            file.write_bytes(bytes(LARGE))
            flush_written()
        with open(file, "r+b") as stream:
            stream.seek(LARGE // 2)
            stream.write(b"changed")
        seal(tmp_path)
    assert sealed_late == ["optimizer.pt"]
    assert read(tmp_path)["optimizer.pt"]["xxh3_128"] == digest(file)


def test_a_file_that_is_replaced_or_removed(tmp_path: Path, sealed_late: list[str]) -> None:
    with flushing.flushing(tmp_path):
        for name in ("a.bin", "b.bin"):
            (tmp_path / name).write_bytes(bytes(LARGE))
        flush_written()
        (tmp_path / "a.bin").unlink()
        (tmp_path / "new").write_bytes(bytes([1]) * LARGE)
        (tmp_path / "new").rename(tmp_path / "b.bin")
        seal(tmp_path)
    assert sealed_late == ["b.bin"]
    assert read(tmp_path).keys() == {"b.bin"}
    assert list(differences(tmp_path)) == []


def test_another_function_in_the_place_of_torch_save(
    tmp_path: Path, sealed_late: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may write in any order."""

    def save(state: Any, file: str, **_: Any) -> None:
        with open(file, "wb") as stream:
            stream.seek(LARGE)
            stream.write(b"end")
            stream.seek(0)
            stream.write(b"begin")

    monkeypatch.setattr(torch, "save", save)
    with flushing.flushing(tmp_path):
        io.save_plain(STATE, str(tmp_path / "optimizer.pt"))
        seal(tmp_path)
    assert sealed_late == ["optimizer.pt"]
    assert list(differences(tmp_path)) == []


def test_an_error_of_the_disk_is_raised_when_it_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with flushing.flushing(tmp_path):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            io.save_plain(STATE, str(tmp_path / "optimizer.pt"))
            flusher = flushing.current_flusher()
            assert flusher is not None
            flusher._pool.shutdown()
        with pytest.raises(OSError, match="No space left"):
            seal(tmp_path)
    assert not (tmp_path / manifest.MANIFEST).exists()


def test_each_file_is_on_the_disk_before_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    honest = os.fsync

    def fsync(descriptor: int) -> None:
        honest(descriptor)
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "model.safetensors").write_bytes(bytes(LARGE))
    (tmp_path / "config.json").write_bytes(b"{}")
    with flushing.flushing(tmp_path):
        flush_written()
        io.save_plain(STATE, str(tmp_path / "optimizer.pt"))
        seal(tmp_path)
    assert set(order[:3]) == {"model.safetensors", "config.json", "optimizer.pt"}
    assert order[3:] == [f"{manifest.MANIFEST}.new", tmp_path.name]


def test_files_elsewhere_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with flushing.flushing(tmp_path / "checkpoint"):
        io.save_plain(STATE, str(tmp_path / "optimizer.pt"))
        seal(tmp_path / "checkpoint")
    assert read(tmp_path / "checkpoint") == {}
    assert torch.equal(io.load_plain(str(tmp_path / "optimizer.pt"))["exp_avg"], STATE["exp_avg"])
