from __future__ import annotations

import io
import os
import pickle
import tarfile
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem, state_dict_saver

from compat.checkpoint import shards
from compat.checkpoint.manifest import seal
from compat.checkpoint.pickles import refuse_code
from compat.checkpoint.verify import problems
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


class Hostile:
    """Leaves a folder behind where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def saved(folder: Path, **entries: Any) -> Path:
    """A `checkpoint-N` folder with an optimizer that is saved in shards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_saver.save(
            {"weight": torch.ones(2, 3), "rate": 0.5, **entries},
            storage_writer=filesystem.FileSystemWriter(folder / "optimizer_0"),
        )
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    torch.save({}, folder / "pytorch_model.bin")
    return folder


def of_shards(folder: Path) -> list[str]:
    return [wrong for wrong in problems(folder) if "optimizer_0/" in wrong]


def rewritten(folder: Path, change: Any) -> None:
    """Change what `.metadata` says of each place."""
    file = folder / "optimizer_0" / ".metadata"
    metadata = shards.read_metadata(file.parent)
    for place in metadata.storage_data.values():
        change(place)
    file.write_bytes(pickle.dumps(metadata))


def test_what_fsdp_writes_is_whole(tmp_path: Path) -> None:
    assert problems(saved(tmp_path)) == []


@pytest.mark.parametrize("is_sealed", [False, True])
def test_an_entry_of_bytes_that_would_run_code_is_refused(tmp_path: Path, is_sealed: bool) -> None:
    target = tmp_path / "made"
    folder = saved(tmp_path / "checkpoint-1", note=Hostile(target))
    if is_sealed:
        seal(folder)
    (wrong,) = of_shards(folder)
    assert wrong.startswith("`optimizer_0/.metadata`: its entry 'note' in '__0_0.distcp' is a pickle")
    assert "posix.mkdir" in wrong
    assert not target.exists()


@pytest.mark.parametrize("name", ["../other/__0_0.distcp", "/etc/passwd", "C:\\shard"])
def test_a_place_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path)
    rewritten(folder, lambda place: setattr(place, "relative_path", name))
    assert of_shards(folder) == [
        f"`optimizer_0/.metadata`: it names {name!r}, which is outside of the checkpoint"
    ]


def test_files_that_metadata_names_are_missed(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    file = folder / "optimizer_0" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    assert of_shards(folder) == [
        "`optimizer_0/.metadata`: it names more of '__0_0.distcp' than there is: the file is cut short"
    ]
    file.unlink()
    assert of_shards(folder) == ["`optimizer_0/.metadata`: it names '__0_0.distcp', which is missing"]


def test_the_files_of_deepspeeds_universal_form_are_looked_at(tmp_path: Path) -> None:
    folder, target = saved(tmp_path / "checkpoint-1"), tmp_path / "made"
    part = folder / "global_step1_universal" / "zero" / "weight" / "fp32.pt"
    part.parent.mkdir(parents=True)
    torch.save(Hostile(target), part)
    (wrong,) = problems(folder)
    assert wrong.startswith("`global_step1_universal/zero/weight/fp32.pt`: a pickle that names posix.mkdir")
    assert not target.exists()


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero/weight/fp32.pt"])
def test_what_deepspeed_unpickles_may_name_no_class_of_a_library(tmp_path: Path, name: str) -> None:
    part = saved(tmp_path) / "global_step1" / name
    part.parent.mkdir(parents=True)
    torch.save(torch.nn.Identity(), part)
    (wrong,) = problems(tmp_path)
    assert wrong.startswith(f"`global_step1/{name}`: a pickle that names ")
    assert "torch.nn.modules.linear.Identity" in wrong


def test_deepspeeds_pointer_names_a_folder_of_deepspeeds(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "other").mkdir()
    (folder / "latest").write_text("other")
    assert problems(folder) == [
        "`latest`: it names 'other', which is no folder that a Trainer has had DeepSpeed write"
    ]


def test_other_forms_that_torch_would_load_are_refused(tmp_path: Path) -> None:
    program = tmp_path / "program.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(program))
    with pytest.raises(CheckpointError, match="a program of TorchScript"):
        refuse_code(program)
    row = tmp_path / "row.pt"
    with tarfile.open(row, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    with pytest.raises(CheckpointError, match="a tar archive"):
        refuse_code(row)
