"""Manifests name the algorithm of each digest; those of earlier versions are still verified."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from compat.checkpoint import manifest
from compat.checkpoint.manifest import MANIFEST, differences, read, reseal, seal

if TYPE_CHECKING:
    from pathlib import Path


def sealed_by_an_earlier_version(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    entry = {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    (folder / MANIFEST).write_bytes(manifest._serialised({"model.safetensors": entry}, None))


def test_a_manifest_of_an_earlier_version_is_verified(tmp_path: Path) -> None:
    sealed_by_an_earlier_version(tmp_path)
    assert list(differences(tmp_path)) == []
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert list(differences(tmp_path)) == [
        ("model.safetensors", "its content was changed since it was written")
    ]


def test_files_that_are_added_to_it_have_the_current_algorithm(tmp_path: Path) -> None:
    sealed_by_an_earlier_version(tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"mine")
    reseal(tmp_path, {"model.safetensors": manifest.traits(tmp_path / "model.safetensors")})
    found = {name: set(entry) for name, entry in read(tmp_path).items()}
    assert found == {"model.safetensors": {"size", "sha256"}, "notes.txt": {"size", "xxh3_128"}}
    assert list(differences(tmp_path)) == []


@pytest.mark.parametrize("digests", [{"crc64": "00"}, {}, {"sha256": "00", "xxh3_128": "00"}])
def test_an_unknown_algorithm_is_named(tmp_path: Path, digests: dict[str, str]) -> None:
    seal(tmp_path)
    (tmp_path / MANIFEST).write_bytes(manifest._serialised({"a.bin": {"size": 0, **digests}}, None))
    assert list(differences(tmp_path)) == [
        (MANIFEST, f"damaged (digest {sorted(digests)}: this version of compat knows xxh3_128, sha256)")
    ]
