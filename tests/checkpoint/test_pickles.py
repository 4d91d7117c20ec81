from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compat.checkpoint.pickles import named_in, refuse_code
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def as_pickle(value: Any) -> bytes:
    return pickle.dumps(value)


def as_archive(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def as_row(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def in_front_of_an_archive(value: Any) -> bytes:
    return pickle.dumps(value) + as_archive({"harmless": 1})


def behind_a_number_that_is_built(value: Any) -> bytes:
    return pickle.dumps(Calls(int, "1")) + pickle.dumps(value)


WAYS = (as_pickle, as_archive, as_row, in_front_of_an_archive, behind_a_number_that_is_built)


@pytest.mark.parametrize("is_loaded_whole", [True, False])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_call_is_found_wherever_it_stands(tmp_path: Path, way: Any, is_loaded_whole: bool) -> None:
    file, target = tmp_path / "file", tmp_path / "made"
    file.write_bytes(way(Calls(os.mkdir, str(target))))
    with pytest.raises(CheckpointError, match=r"posix\.mkdir|no pickle that torch"):
        refuse_code(file, is_loaded_whole=is_loaded_whole)
    assert not target.exists()


# Opcodes: a global of two words, its arguments, a call.
DOTTED = pickle.PROTO + b"\x04\x8c\x19torch.utils.cpp_extension\x8c\x10subprocess.Popen\x93)R."
BY_NAME = pickle.PROTO + b"\x04cbuiltins\ngetattr\n(ctorch.hub\nThing\nVrun\ntR)R."
EVALUATED = pickle.PROTO + b"\x04cbuiltins\neval\n."


@pytest.mark.parametrize(
    "content", [DOTTED, BY_NAME, EVALUATED], ids=["dotted", "by name", "not even called"]
)
@pytest.mark.parametrize("is_loaded_whole", [True, False])
def test_roundabout_calls_are_found(tmp_path: Path, content: bytes, is_loaded_whole: bool) -> None:
    pickletools.dis(content, io.StringIO())
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="file`"):
        refuse_code(tmp_path / "file", is_loaded_whole=is_loaded_whole)


def test_a_library_s_class_stands_only_in_what_is_not_loaded_as_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps(torch.nn.Linear(1, 1)))
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        refuse_code(tmp_path / "file")


def test_values_are_let_through(tmp_path: Path) -> None:
    state = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict()
    for name, way in (("archive", as_archive), ("row", as_row)):
        (tmp_path / name).write_bytes(way({"state": state, "type": torch.bfloat16, "size": torch.Size([1])}))
        refuse_code(tmp_path / name)
        assert named_in(tmp_path / name)["torch.Size"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"neither"])
def test_what_is_no_pickle_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="no pickle that torch would have written"):
        refuse_code(tmp_path / "file")
    assert not zipfile.is_zipfile(tmp_path / "file")
