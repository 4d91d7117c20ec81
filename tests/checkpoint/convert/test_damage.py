"""What is damaged is refused, or makes no difference to what is written."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compat.checkpoint.convert import convert
from compat.checkpoint.manifest import MANIFEST
from compat.errors import CheckpointError
from tests.checkpoint.convert import harms, made

if TYPE_CHECKING:
    from pathlib import Path

FRACTIONS = (0.02, 0.45, 0.97)


@pytest.mark.parametrize("form", harms.FORMS)
def test_harm_is_refused_or_makes_no_difference(tmp_path: Path, form: str) -> None:
    names = harms.prepare(form, tmp_path)
    several = ((harm, share) for harm in (harms.flip, harms.cut) for share in FRACTIONS)
    for (harm, share), name in itertools.product([*several, (harms.remove, 0.0), (harms.swap, 0.0)], names):
        assert harms.harmed(form, tmp_path, harm, name, share) == "", (harm.__name__, name, share)


def last_bit_of(file: Path, tensor: torch.Tensor) -> None:
    """Flip a bit of the last number of a tensor in a file."""
    content = bytearray(file.read_bytes())
    held = tensor.numpy().tobytes()
    assert content.count(held) == 1
    content[content.index(held) + len(held) - 4] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("hf", "model.safetensors"),
        ("pickled", "part a.bin"),
        ("lightning", ""),
        ("sharded", "pytorch_model_fsdp_0/__0_0.distcp"),
        ("unsealed", "pytorch_model_fsdp_0/__0_0.distcp"),
        ("folder of lightning's", "__0_0.distcp"),
    ],
)
@pytest.mark.parametrize("target", ["x.ckpt", "checkpoint-9", "final"])
def test_a_bit_of_a_weight_is_noticed(tmp_path: Path, form: str, file: str, target: str) -> None:
    source = harms.FORMS[form][0](tmp_path / "source", 3)
    damaged = source / file if file else source
    last_bit_of(damaged, harms.model(3)["a"])
    with pytest.raises(CheckpointError) as error:
        convert(source, tmp_path / "out" / target)
    assert damaged.name in str(error.value)
    assert "damaged" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_part_of_deepspeeds_is_noticed(tmp_path: Path) -> None:
    source = harms.zero(2)(tmp_path / "source", 3)
    file = source / "global_step1" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    states = torch.load(file, weights_only=True)["optimizer_state_dict"]
    last_bit_of(file, states["single_partition_of_fp32_groups"][0])
    with pytest.raises(CheckpointError, match=rf"{file.name}`: cut short or damaged \(Bad CRC-32"):
        convert(source, tmp_path / "x.ckpt")


def test_where_the_change_was_meant_the_manifest_goes(tmp_path: Path) -> None:
    source = harms.hf(tmp_path / "checkpoint-7", 3)
    (source / "trainer_state.json").write_text(json.dumps({"global_step": 6, "epoch": 1.0}))
    with pytest.raises(CheckpointError, match=rf"delete `{MANIFEST}` from the folder"):
        convert(source, tmp_path / "x.ckpt")
    (source / MANIFEST).unlink()
    convert(source, tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["global_step"] == 6


def test_what_is_only_copied_is_checked_too(tmp_path: Path) -> None:
    source = harms.pickled(tmp_path / "checkpoint-7", 3)
    last_bit_of(source / "rng_state.pth", torch.arange(3, 12))
    with pytest.raises(CheckpointError, match=r"`rng_state.pth`: cut short or damaged \(Bad CRC-32"):
        convert(source, tmp_path / "x.ckpt")


def test_what_converts_is_sealed_in_shards_too(tmp_path: Path) -> None:
    """Shards that were converted are held against a manifest, as those that a Trainer has written."""
    source = harms.hf(tmp_path / "checkpoint-7", 3)
    (source / "optimizer.pt").unlink()
    (source / MANIFEST).unlink()
    convert(source, tmp_path / "shards", "sharded")
    assert (tmp_path / "shards" / MANIFEST).is_file()
    harms.flip(tmp_path / "shards" / "config.json", 0.5, tmp_path)
    with pytest.raises(CheckpointError, match=r"`config.json`: its content was changed"):
        convert(tmp_path / "shards", tmp_path / "x.ckpt")


def test_the_checks_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = harms.hf(tmp_path / "checkpoint-7", 3)
    convert(source, tmp_path / "x.ckpt", quiet=False)
    shown = capsys.readouterr().err
    assert "checking: 100%" in shown
    assert "converting: 100%" in shown


def test_all_of_a_tree_is_the_same_as_before(tmp_path: Path) -> None:
    source: Any = harms.lightning(tmp_path, 3)
    found = torch.load(source, weights_only=True)
    expected = {f"model.{name}": tensor for name, tensor in harms.model(3).items()}
    assert made.same(found["state_dict"], expected)
    assert made.same(found["optimizer_states"], [harms.optimizer(3)])
