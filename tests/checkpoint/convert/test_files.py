"""The two formats of files, against the libraries that they are of."""

from __future__ import annotations

import json
import struct
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import torch as safetensors
from safetensors.torch import load_file, save_file

from compat.checkpoint.convert import lazy, safe, torchfile
from compat.checkpoint.counting import telling
from compat.checkpoint.verify import damage
from compat.errors import CheckpointError
from compat.upstream.features import STORAGES_KNOW_THEIR_PLACE
from tests.checkpoint.convert import made

if TYPE_CHECKING:
    from pathlib import Path


def tree() -> dict[str, Any]:
    whole = torch.arange(12.0).view(3, 4)
    return {
        "whole": whole,
        "again": whole,
        "part": whole[1:],
        "across": whole.t(),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "wide": torch.ones(5, dtype=torch.uint16),
        "states": OrderedDict({0: [torch.zeros(2), None], 1: (torch.ones(1, dtype=torch.bool), "text", 1.5)}),
    }


def filled(value: Any) -> Any:
    """A tree with the tensors that its lazy ones stand for."""
    if isinstance(value, torch.Tensor):
        return lazy.real(value)
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(filled, value))
    return value


@pytest.mark.skipif(not STORAGES_KNOW_THEIR_PLACE, reason="torch maps the file instead")
def test_what_torch_has_saved_is_read_late(tmp_path: Path) -> None:
    torch.save(tree(), tmp_path / "x.pt")
    found = torchfile.read(tmp_path / "x.pt")
    assert all(lazy.is_lazy(found[name]) for name in ("whole", "part", "scalar", "half"))
    assert lazy.identity(found["whole"]) == lazy.identity(found["again"])
    assert lazy.identity(found["whole"]) != lazy.identity(found["part"])
    assert made.same(filled(found), tree())


def test_what_is_written_is_what_torch_would_write(tmp_path: Path) -> None:
    torch.save(tree(), tmp_path / "theirs.pt")
    more = {"new": torch.arange(3), "declared": lazy.declared((2, 2), torch.float32, lazy.Assembled(make))}
    torchfile.write({**torchfile.read(tmp_path / "theirs.pt"), **more}, tmp_path / "ours.pt")
    found = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert made.same(found, {**tree(), "new": torch.arange(3), "declared": make()})
    assert found["whole"].data_ptr() == found["again"].data_ptr()
    assert found["part"].untyped_storage().data_ptr() == found["whole"].data_ptr()
    with zipfile.ZipFile(tmp_path / "ours.pt") as archive:
        assert archive.testzip() is None
    reader = torch._C.PyTorchFileReader(str(tmp_path / "ours.pt"))
    data = [name for name in reader.get_all_records() if name.startswith("data/")]
    assert len(data) == 10
    assert all(reader.get_record_offset(name) % 64 == 0 for name in data)


def make() -> torch.Tensor:
    return torch.full((2, 2), 7.0)


def test_tensors_of_a_gpu_become_those_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        torch.save({"weight": torch.ones(3)}, tmp_path / "x.pt")
    torchfile.write(torchfile.read(tmp_path / "x.pt"), tmp_path / "y.pt")
    assert made.same(torch.load(tmp_path / "y.pt", weights_only=True), {"weight": torch.ones(3)})


def test_the_form_before_archives(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert made.same(torchfile.read(tmp_path / "x.bin"), {"weight": torch.ones(3)})


def is_written(dtype: torch.dtype) -> bool:
    """Whether the installed safetensors writes tensors of this type."""
    try:
        safetensors.save({"it": torch.ones(1, dtype=dtype)})
    except KeyError:
        return False
    return True


def tensors() -> dict[str, torch.Tensor]:
    kinds = {name: torch.ones(3, dtype=dtype) for name, dtype in safe.DTYPES.items() if is_written(dtype)}
    return {**kinds, "a.b": torch.randn(4, 5), "scalar": torch.tensor(2.0), "empty": torch.empty(0, 2)}


def test_safetensors_to_the_byte(tmp_path: Path) -> None:
    expected = tensors()
    save_file(expected, tmp_path / "theirs.safetensors", {"format": "pt"})
    found = safe.read(tmp_path / "theirs.safetensors")
    assert made.same(filled(found), expected)
    safe.write(found, tmp_path / "ours.safetensors")
    ours, theirs = ((tmp_path / f"{whose}.safetensors").read_bytes() for whose in ("ours", "theirs"))
    assert ours == theirs


def test_types_of_eight_bits_are_read_where_torch_has_them(tmp_path: Path) -> None:
    kinds = {"F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"}
    for name, kind in kinds.items():
        header = json.dumps({"a": {"dtype": name, "shape": [3], "data_offsets": [0, 3]}}).encode()
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x01\x02\x03")
        if not hasattr(torch, kind):
            with pytest.raises(CheckpointError, match=rf"`a` is of the type {name}, which this torch lacks"):
                safe.read(path)
            continue
        found = lazy.real(safe.read(path)["a"])
        assert found.dtype == getattr(torch, kind)
        assert found.view(torch.uint8).tolist() == [1, 2, 3]


def test_a_type_that_is_not_known_is_named(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F2", "shape": [4], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\x01")
    with pytest.raises(CheckpointError, match=r"`a` is of the type F2, which this torch lacks\. Update it"):
        safe.read(tmp_path / "model.safetensors")
    (wrong,) = damage(tmp_path)
    told = "a tensor is of the type F2, which the installed safetensors does not know"
    assert wrong == f"`model.safetensors`: {told}"


@pytest.mark.parametrize("header", [b"[]", b"3", b'"x"', b"null", b'{"a": 3}', b'{"a": {"dtype": 3}}'])
def test_a_header_that_is_none(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=r"x.safetensors`: not a whole file of safetensors"):
        safe.read(tmp_path / "x.safetensors")


def test_another_type_on_the_way(tmp_path: Path) -> None:
    safe.write({"a": torch.randn(3), "n": torch.arange(3)}, tmp_path / "x.safetensors", torch.float16)
    found = load_file(tmp_path / "x.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {"a": torch.float16, "n": torch.int64}


def test_what_safetensors_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no type for `odd` \(torch.complex128\)"):
        safe.write({"odd": torch.ones(2, dtype=torch.complex128)}, tmp_path / "x.safetensors")


@pytest.mark.parametrize("left", [4, 20, 600])
def test_files_that_are_cut_short(tmp_path: Path, left: int) -> None:
    for name, save, read in (
        ("x.safetensors", save_file, safe.read),
        ("x.pt", torch.save, torchfile.read),
    ):
        save({"weight": torch.randn(400)}, tmp_path / name)
        written = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(written[:left])
        with pytest.raises(CheckpointError, match=f"{name}`: "):
            filled(read(tmp_path / name))


def test_a_file_that_ends_while_it_is_read(tmp_path: Path) -> None:
    save_file({"weight": torch.randn(400)}, tmp_path / "x.safetensors")
    found = safe.read(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="it ends in the middle of a tensor"):
        lazy.real(found["weight"])


def test_bytes_are_counted_once(tmp_path: Path) -> None:
    torch.save(tree(), tmp_path / "x.pt")
    counted: list[int] = []
    with telling(counted.append):
        filled(torchfile.read(tmp_path / "x.pt")["whole"])
        lazy.real(torch.ones(2))
    assert counted == [48, 8]


def test_a_torch_that_notes_no_places_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchfile, "STORAGES_KNOW_THEIR_PLACE", False)
    torch.save(tree(), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "outer", "w") as outer:
        outer.write(tmp_path / "x.pt", "inner")
        place = outer.getinfo("inner").header_offset
    found = torchfile.read(tmp_path / "x.pt")
    assert made.same(filled(found), tree())
    assert not lazy.is_lazy(found["whole"])
    start = (tmp_path / "outer").read_bytes().index(b"PK", place + 4)
    inner = (start, (tmp_path / "x.pt").stat().st_size)
    assert made.same(filled(torchfile.read(tmp_path / "outer", inner)), tree())
