"""Whole or not at all, and what is refused."""

from __future__ import annotations

import collections
import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compat.checkpoint.convert import convert, dcp, lazy
from compat.checkpoint.manifest import MANIFEST, differences
from compat.errors import CheckpointError
from tests.checkpoint.convert import made


class Projector:
    pass


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("hostile-was-here",)


@pytest.fixture(autouse=True)
def nothing_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("hostile-was-here").exists()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of a model that transformers does not have."""
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    save_file({"a": torch.randn(4, 3), "b": torch.ones(2)}, folder / "model.safetensors")
    torch.save({"state": {}, "param_groups": [{"params": [0, 1]}]}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 7, "epoch": 1.0}))
    (folder / "sub").mkdir()
    (folder / "sub" / "tokens.txt").write_text("a\nb\n")
    return folder


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_sealed(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "x.ckpt")
    convert(tmp_path / "x.ckpt", tmp_path / "out" / "checkpoint-7")
    made.assert_equal(source, tmp_path / "out" / "checkpoint-7")
    assert (tmp_path / "out" / "checkpoint-7" / MANIFEST).is_file()
    assert not list(differences(tmp_path / "out" / "checkpoint-7"))
    assert left(tmp_path) == {"checkpoint-7", "x.ckpt", "out"}


@pytest.mark.parametrize("target", ["x.ckpt", "final", "checkpoint-8"])
def test_nothing_is_left_of_what_fails(
    source: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "config.json").write_text("{}")
    real = lazy.real

    def fails(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 2:
            raise OSError(28, "No space left on device")
        return real(tensor)

    monkeypatch.setattr(lazy, "real", fails)
    monkeypatch.setattr(lazy, "read_storage", lambda of: fails(torch.empty(2)))
    before = left(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{target}`: not written \(.*No space left"):
        convert(source, tmp_path / target)
    assert left(tmp_path) == before


def test_what_is_there_stays_unless_it_is_said(source: Path, tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "notes.txt").write_text("mine")
    (source / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"it is there already. Give another name, or `--overwrite`"):
        convert(source, tmp_path / "final")
    assert left(tmp_path / "final") == {"notes.txt"}
    convert(source, tmp_path / "final", overwrite=True)
    assert left(tmp_path / "final") == {"config.json", "model.safetensors", "sub"}
    assert left(tmp_path) == {"checkpoint-7", "final"}


def test_a_folder_that_holds_the_checkpoint_is_not_replaced(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint-7` lies in it, and would be gone"):
        convert(source, tmp_path, "lightning", overwrite=True)
    assert left(tmp_path) == {"checkpoint-7"}


def test_a_configuration_may_name_models_only(source: Path, tmp_path: Path) -> None:
    named = {"architectures": ["is_torch_available"], "model_type": "gpt2"}
    (source / "config.json").write_text(json.dumps(named))
    convert(source, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="not of a model of transformers'"):
        convert(source, tmp_path / "x", "sharded")


def test_a_checkpoint_may_take_its_own_place(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy")
    convert(source, source, overwrite=True)
    made.assert_equal(source, tmp_path / "copy")
    assert left(tmp_path) == {"checkpoint-7", "copy"}


def test_what_a_killed_conversion_has_left_is_cleared_away(source: Path, tmp_path: Path) -> None:
    (tmp_path / "_partial-x.ckpt").mkdir()
    (tmp_path / "_partial-x.ckpt" / "rest").touch()
    convert(source, tmp_path / "x.ckpt")
    assert left(tmp_path) == {"checkpoint-7", "x.ckpt"}


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("x", {"to": "deepspeed"}, r"x`: the form `deepspeed` is read and never written: .* resume"),
        ("x", {"to": "gguf"}, "`--to gguf`: no such form. Give one of lightning, sharded, hf, pretrained"),
        ("x", {}, "no config.json was found in it or beside it"),
        ("x", {"config": "nowhere"}, r"`--config nowhere`: there is no `config.json`. Give one"),
        ("x", {"config": "checkpoint-7"}, r"`--config checkpoint-7`: there is no `config.json`"),
        (
            "x",
            {"to": "sharded"},
            "which of its optimizer's numbers stands for which parameter cannot be known",
        ),
    ],
)
def test_what_cannot_be_done(source: Path, target: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        convert(source, target, **options)
    assert left(source.parent) == {"checkpoint-7"}


def test_sizes_that_make_no_sense(source: Path) -> None:
    with pytest.raises(CheckpointError, match="`--max-shard-size big`"):
        convert(source, "checkpoint-8", max_shard_size="big")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty`: none of the forms .*hf: a `checkpoint-N` folder"):
        convert(tmp_path / "empty", tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"nothing`: no such file or folder"):
        convert(tmp_path / "nothing", tmp_path / "x")


def test_a_pretrained_folder_is_not_resumed(source: Path, tmp_path: Path) -> None:
    (source / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match="no HF Trainer has written it"):
        convert(source, tmp_path / "checkpoint-8")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "..\\x", "C:\\x", "a/../../b"]
)
def test_an_index_that_leaves_its_folder(source: Path, tmp_path: Path, name: str) -> None:
    (source / "model.safetensors").rename(tmp_path / "model.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(
        CheckpointError, match=r"index.json`: it names `.*`, which leads out of the checkpoint"
    ):
        convert(source, tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"weight_map": {"a": "model-00001-of-00001.safetensors"}}, "which is missing"),
        ({"weight_map": {"z": "other.safetensors"}}, "no shard holds `z`"),
        ({"weights": {}}, "index.json`: its entry `weight_map` is missing"),
        ([], "index.json`: a list, where entries by name are wanted"),
    ],
)
def test_an_index_that_is_wrong(source: Path, tmp_path: Path, index: Any, told: str) -> None:
    (source / "model.safetensors").rename(source / "other.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=told):
        convert(source, tmp_path / "x.ckpt")


def test_files_in_a_ckpt_that_leave_the_folder(tmp_path: Path) -> None:
    files = {"../evil.txt": torch.zeros(3, dtype=torch.uint8), "trainer_state.json": torch.tensor([123, 125])}
    files["trainer_state.json"] = files["trainer_state.json"].to(torch.uint8)
    torch.save({"state_dict": {"model.a": torch.ones(2)}, "hf_files": files}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"names `../evil.txt`, which leads out"):
        convert(tmp_path / "x.ckpt", tmp_path / "checkpoint-1")
    assert left(tmp_path) == {"x.ckpt"}


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "pytorch_model.bin"])
def test_pickles_that_would_run_code(source: Path, tmp_path: Path, file: str) -> None:
    (source / "model.safetensors").rename(source / "sub" / "model.safetensors")
    torch.save({"a": torch.ones(2)}, source / "pytorch_model.bin")
    torch.save(Hostile(), source / file)
    with pytest.raises(CheckpointError, match=rf"{file}`: torch cannot read it as plain data"):
        convert(source, tmp_path / "x.ckpt")


def test_a_ckpt_that_would_run_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Hostile()}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x.ckpt`: torch cannot read it as plain data"):
        convert(tmp_path / "x.ckpt", tmp_path / "y")


def test_a_class_in_a_state_is_named_with_its_entry(source: Path, tmp_path: Path) -> None:
    groups = [{"params": [0], "projector": Projector()}]
    torch.save({"state": {}, "param_groups": groups}, source / "optimizer.pt")
    expected = rf"it holds {__name__}.Projector \(`param_groups\[0\]\['projector'\]`\)"
    with pytest.raises(CheckpointError, match=expected):
        convert(source, tmp_path / "x.ckpt")


def test_tensors_as_keys_and_values_that_stand_in_two_places(source: Path, tmp_path: Path) -> None:
    shared = {"own": [torch.arange(3.0)]}
    keyed = {torch.nn.Parameter(torch.ones(2)): torch.full((2,), 0.5)}
    groups = [{"params": [0], "keyed": keyed, "once": shared, "twice": shared}]
    torch.save({"state": {}, "param_groups": groups}, source / "optimizer.pt")
    convert(source, tmp_path / "x.ckpt")
    convert(tmp_path / "x.ckpt", tmp_path / "y.ckpt")
    for file in ("x.ckpt", "y.ckpt"):
        (state,) = torch.load(tmp_path / file, weights_only=True)["optimizer_states"]
        (group,) = state["param_groups"]
        ((key, value),) = group["keyed"].items()
        assert (key.tolist(), value.tolist()) == ([1, 1], [0.5, 0.5])
        assert group["once"]["own"][0].tolist() == group["twice"]["own"][0].tolist() == [0, 1, 2]


def test_metadata_of_shards_that_would_run_code(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    shards = source / "pytorch_model_fsdp_0"
    shards.mkdir()
    (shards / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=r"\.metadata`: a pickle that names .*mkdir"):
        convert(source, tmp_path / "x.ckpt")


@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_deepspeeds_files_that_would_run_code(tmp_path: Path, file: str) -> None:
    made.zero(tmp_path / "checkpoint-1", {"a": torch.ones(4), "b": torch.ones(4)}, 2)
    torch.save({"module": Hostile()}, tmp_path / "checkpoint-1" / "global_step1" / file)
    with pytest.raises(CheckpointError, match=rf"{file}`: a pickle that names .*mkdir"):
        convert(tmp_path / "checkpoint-1", tmp_path / "x.ckpt")


def test_what_deepspeed_knows_is_not_looked_up(tmp_path: Path) -> None:
    made.zero(tmp_path / "checkpoint-1", {"a": torch.arange(4.0), "b": torch.ones(3)}, 3)
    step = tmp_path / "checkpoint-1" / "global_step1"
    file = step / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({**torch.load(file), "loss_scaler": Scaler()}, file)
    convert(tmp_path / "checkpoint-1", tmp_path / "x.ckpt")
    assert not Scaler.was_made
    found = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert made.same(found, {"model.a": torch.arange(4.0), "model.b": torch.ones(3)})


def test_what_deepspeed_calls_itself_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.zero(tmp_path / "checkpoint-1", {"a": torch.arange(4.0), "b": torch.ones(3)}, 2)
    file = tmp_path / "checkpoint-1" / "global_step1" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    theirs = types.ModuleType("deepspeed.utils.tensor_fragment")
    place = collections.namedtuple("fragment_address", "numel start")  # noqa: PYI024 (as DeepSpeed has it)
    place.__module__, theirs.fragment_address = theirs.__name__, place
    with monkeypatch.context() as patched:
        for name in ("deepspeed", "deepspeed.utils", theirs.__name__):
            patched.setitem(sys.modules, name, theirs)
        torch.save({**torch.load(file), "places": [place(4, 0)]}, file)
    convert(tmp_path / "checkpoint-1", tmp_path / "x.ckpt")
    found = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert made.same(found["model.a"], torch.arange(4.0))


class Scaler:
    was_made = False

    def __setstate__(self, state: Any) -> None:
        Scaler.was_made = True

    def __getstate__(self) -> dict[str, int]:
        return {"scale": 1}


def test_parts_of_deepspeeds_that_are_missing(tmp_path: Path) -> None:
    made.zero(tmp_path / "checkpoint-1", {"a": torch.ones(4), "b": torch.ones(4)}, 2, processes=3)
    (tmp_path / "checkpoint-1" / "global_step1" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="files of some processes are missing"):
        convert(tmp_path / "checkpoint-1", tmp_path / "x.ckpt")


def test_shards_that_are_missing(tmp_path: Path) -> None:
    shards = tmp_path / "checkpoint-9" / "pytorch_model_fsdp_0"
    shards.parent.mkdir()
    dcp.write({"model": {"a": torch.ones(2)}}, shards)
    (shards / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"\.metadata`: it names `__0_0.distcp`, which is missing"):
        convert(shards.parent, tmp_path / "x.ckpt")
