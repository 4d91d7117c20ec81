from __future__ import annotations

import contextlib
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict, deque
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import transformers

import compat
from compat.checkpoint.safe_unpickler import read_arguments
from compat.errors import CompatError
from compat.upstream.environment import contained

OPTIONS: dict[str, Any] = {
    "output_dir": "out",
    "report_to": [],
    "use_cpu": True,
    "learning_rate": 0.5,
    "eval_strategy": "epoch",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "accelerator_config": {"split_batches": True},
    "label_names": ["a", "b"],
    "debug": "underflow_overflow",
}


class Colour(Enum):
    RED = "red"


class Creates:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class Sets:
    """An object whose unpickling would give a state to what a call returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        make = f"open({str(self.path)!r}, 'w').close()"
        return eval, (f"({make}, __import__('types').SimpleNamespace())[1]",), {"output_dir": "out"}


def saved(folder: Path, value: Any) -> str:
    path = folder / "training_args.bin"
    torch.save(value, path)
    return str(path)


@pytest.mark.parametrize("library", [compat, transformers])
@pytest.mark.parametrize("kind", ["TrainingArguments", "Seq2SeqTrainingArguments"])
def test_saved_arguments_are_read(tmp_path: Path, library: Any, kind: str) -> None:
    with contained():
        args = getattr(library, kind)(**OPTIONS)
    read = read_arguments(saved(tmp_path, args))
    assert {name: read[name] for name in ("learning_rate", "eval_strategy", "label_names", "debug")} == {
        "learning_rate": 0.5,
        "eval_strategy": "epoch",
        "label_names": ["a", "b"],
        "debug": ["underflow_overflow"],
    }
    assert read["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert read["accelerator_config"]["split_batches"] is True
    assert read.keys() >= set(args.to_dict()) & set(vars(args))


@pytest.mark.parametrize("kind", [Creates, Sets])
@pytest.mark.parametrize("place", ["whole", "attribute"])
def test_nothing_that_a_file_names_is_run(tmp_path: Path, kind: Any, place: str) -> None:
    trap = tmp_path / "trapped"
    whole = kind(trap)
    with contained():
        args = compat.TrainingArguments(**OPTIONS)
    if place == "attribute":
        args.run_name = kind(trap)
    path = saved(tmp_path, whole if place == "whole" else args)
    with contextlib.suppress(CompatError):
        read_arguments(path)
    assert not trap.exists()
    # The trap is one: pickle itself would run it.
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        pickle.loads(archive.read(name))  # noqa: S301 (our own bytes)
    assert trap.exists()


def test_objects_become_plain_data(tmp_path: Path) -> None:
    with contained():
        args = compat.TrainingArguments(**OPTIONS)
    extras = {
        "colour": Colour.RED,
        "ordered": OrderedDict(a=Colour.RED),
        "queue": deque([1, 2]),
        "path": PurePosixPath("a/b"),
        "kind": Colour,
        "dtype": torch.float16,
        "tensor": torch.zeros(2),
        "fields": {1, 2},
    }
    vars(args).update(extras)
    read = read_arguments(saved(tmp_path, args))
    assert read["colour"] == "red"
    assert read["ordered"] == {"a": "red"}
    assert read["fields"] == [1, 2]
    assert read.keys() >= extras.keys()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a zip", b"PK\x03\x04", pickle.dumps({"learning_rate": 1}), b"\x80\x04."],
    ids=["empty", "text", "half a zip", "a plain pickle", "nothing"],
)
def test_what_is_no_such_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "training_args.bin"
    path.write_bytes(content)
    with pytest.raises(CompatError, match="not a file of saved arguments") as caught:
        read_arguments(str(path))
    assert f"`{path}`" in str(caught.value)


@pytest.mark.parametrize("value", [{"learning_rate": 1}, [1], torch.zeros(2), None, 5, Colour.RED])
def test_a_file_of_something_else_is_told(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CompatError, match=r"Give a training_args\.bin"):
        read_arguments(saved(tmp_path, value))


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04.", b"c", b"\x80\x04]q\x00(K\x01", b"garbage", b"\x80\x04K\x01Rx."]
)
def test_a_broken_pickle_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "training_args.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with warnings.catch_warnings(), pytest.raises(CompatError, match="not a file of saved arguments"):
        read_arguments(str(path))
