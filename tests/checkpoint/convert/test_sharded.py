"""Shards that two processes load and write."""

from __future__ import annotations

import itertools
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from compat.checkpoint.convert import convert, dcp
from compat.checkpoint.convert.forms import form_of
from compat.errors import CheckpointError
from tests.checkpoint.convert import job, made
from tests.distributed import jobs, sharded

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

# Sums are taken in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`name/checkpoint-4` and `-6` in shards, gone on from a converted one; `plain/name` of one process."""

    def make(folder: Path) -> None:
        sharded.make(made.MODELS["gpt2"]).save_pretrained(folder / "base")
        for name in job.MODELS:
            alone = {**made.ONE_BY_ONE, "gradient_accumulation_steps": 2, "max_steps": 6}
            end = made.train("compat", folder / "plain" / name, name, **alone)
            torch.save(end, folder / "plain" / name / "end.pt")
            source = folder / "plain" / name / "checkpoint-2"
            convert(source, folder / name / "checkpoint-2", "sharded", config=folder / "base")
        shutil.copy(source / "adapter_config.json", folder / "base")
        jobs.finished(jobs.run(jobs.torchrun(job.__file__, str(folder))))

    return jobs.once(tmp_path_factory, "converted-shards", make)


@pytest.mark.parametrize("name", job.MODELS)
def test_two_processes_go_on_from_what_was_converted(runs: Path, name: str) -> None:
    losses, _ = torch.load(runs / name / "end.pt")
    expected, _ = torch.load(runs / "plain" / name / "end.pt")
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", job.MODELS)
def test_what_two_processes_have_written_is_put_together(runs: Path, tmp_path: Path, name: str) -> None:
    source = runs / name / "checkpoint-6"
    assert form_of(source).name == form_of(source / "pytorch_model_fsdp_0").name == "sharded"
    convert(source, tmp_path / "checkpoint-6", config=runs / "base")
    _, live = torch.load(runs / name / "end.pt")
    found = made.weights(tmp_path / "checkpoint-6")
    assert all(torch.equal(tensor, live[name_in_memory(key, live)]) for key, tensor in found.items())
    assert set(found) == set(made.weights(runs / "plain" / name / "checkpoint-6"))
    chunks = (
        dcp.filesystem.FileSystemReader(source / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata
    )
    assert max(len(entry.chunks) for entry in chunks.values()) == 2


def name_in_memory(name: str, live: dict[str, torch.Tensor]) -> str:
    return name if name in live else name.replace(".weight", ".default.weight")


def test_adapters_need_their_configuration(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"checkpoint-6`: its weights are those of adapters, and no adapter"
    ):
        convert(runs / "lora" / "checkpoint-6", tmp_path / "checkpoint-6")


@pytest.mark.parametrize("library", ["transformers", "compat"])
@pytest.mark.parametrize("name", job.MODELS)
def test_one_process_goes_on_from_them(runs: Path, tmp_path: Path, name: str, library: str) -> None:
    convert(runs / name / "checkpoint-4", tmp_path / "checkpoint-4", config=runs / "base")
    alone = {**made.ONE_BY_ONE, "gradient_accumulation_steps": 2, "max_steps": 6}
    losses, weights = made.train(library, tmp_path / "run", name, resume=tmp_path / "checkpoint-4", **alone)
    expected, final = torch.load(runs / "plain" / name / "end.pt")
    assert losses == pytest.approx(expected, rel=1e-4)
    assert all(torch.allclose(weights[key], final[key], **CLOSE) for key in final)


def test_shards_of_lightnings(runs: Path, tmp_path: Path) -> None:
    source = runs / "shards.ckpt"
    assert source.is_dir()
    weights, optimizer = torch.load(runs / "shards.pt")
    convert(source, tmp_path / "whole.ckpt", config=runs / "base")
    found = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    assert made.same(dict(weights), dict(found["state_dict"]))
    [state] = found["optimizer_states"]
    names = list(itertools.chain.from_iterable(group["params"] for group in optimizer["param_groups"]))
    assert made.same(state["state"], {at: optimizer["state"][name] for at, name in enumerate(names)})
    assert state["param_groups"][1]["params"][0] == len(optimizer["param_groups"][0]["params"])
    convert(source, tmp_path / "final", config=runs / "base")
    kept = {f"model.{name}": tensor for name, tensor in made.weights(tmp_path / "final").items()}
    assert made.same(kept, {name: weights[name] for name in kept})
    assert len(kept) == len(weights) - 1
