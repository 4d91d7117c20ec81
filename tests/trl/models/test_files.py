from __future__ import annotations

import json
import pickle
import shutil
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GPT2LMHeadModel

from compat.errors import ArgumentError, CheckpointError
from compat.trl.models import files
from tests.trl.saved import FOLDER

if TYPE_CHECKING:
    from pathlib import Path


class AnyModel:
    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return args, kwargs


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, list[Any]]:
    """A folder that stands for a repository, and what was asked of it."""
    asked: list[Any] = []

    def download(source: str, file: str, **given: Any) -> str:
        asked.append((source, file, given))
        path = tmp_path / "remote" / file
        if not path.exists():
            raise LocalEntryNotFoundError(file)
        return str(path)

    (tmp_path / "remote").mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path / "remote", asked


def test_of_a_repository_only_the_first_weights_are_fetched(hub: tuple[Path, list[Any]]) -> None:
    folder, asked = hub
    save_file({"wte.weight": torch.ones(2)}, folder / "model.safetensors")
    torch.save({"v_head.summary.weight": torch.ones(2)}, folder / "pytorch_model.bin")
    assert files.read_modules("someone/model", ("v_head",), token="t", revision="r") == {}  # noqa: S106
    assert asked == [("someone/model", "model.safetensors", {"token": "t", "revision": "r"})]


def test_of_a_repository_only_shards_with_the_module_are_fetched(hub: tuple[Path, list[Any]]) -> None:
    folder, asked = hub
    index = {"weight_map": {"wte.weight": "one.safetensors", "v_head.summary.weight": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(
        {"v_head.summary.weight": torch.ones(2), "ln.weight": torch.ones(1)}, folder / "two.safetensors"
    )
    found = files.read_modules("someone/model", ("v_head",))
    assert list(found) == ["v_head.summary.weight"]
    assert [file for _, file, _ in asked] == [
        "model.safetensors",
        "model.safetensors.index.json",
        "two.safetensors",
    ]
    (folder / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index names 'two.safetensors', which is missing"):
        files.read_modules("someone/model", ("v_head",))


def test_a_folder_is_looked_through(hub: tuple[Path, list[Any]], tmp_path: Path) -> None:
    save_file({"wte.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"v_head.summary.bias": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert files.read_modules(str(tmp_path), ("v_head",)) == {"v_head.summary.bias": torch.ones(1)}
    (tmp_path / "below").mkdir()
    assert files.find(str(tmp_path), "model.safetensors", subfolder="below") is None
    assert hub[1] == []


def test_what_would_run_code_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with open(path, "wb") as file:
        pickle.dump({"v_head.summary.bias": shutil.rmtree}, file, protocol=2)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin` cannot be read as weights"):
        files.read(str(path))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_is_cut_short_is_not_read(name: str, tmp_path: Path) -> None:
    kind = {"model.safetensors": "plain", "pytorch_model.bin": "pickled"}[name]
    path = tmp_path / name
    path.write_bytes((FOLDER / kind / name).read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=f"{name}` cannot be read as weights"):
        files.read(str(path))
    with pytest.raises(CheckpointError, match=f"`{name}`: .*Nothing has been loaded"):
        files.load_model(AnyModel, str(tmp_path))


def test_models_are_loaded_in_float32_unless_told() -> None:
    name = files._DTYPE
    assert files.load_model(AnyModel, "m", 1, a=2) == (("m", 1), {"a": 2, name: torch.float32})
    assert files.load_model(AnyModel, "m", torch_dtype="auto") == (("m",), {name: "auto"})
    assert files.load_model(AnyModel, "m", **{name: torch.bfloat16}) == (("m",), {name: torch.bfloat16})


@pytest.mark.parametrize(
    ("name", "is_tied", "is_drawn"),
    [
        ("plain", True, True),
        ("sharded", True, True),
        ("pickled", True, False),
        ("pickled_shards", True, False),
        ("plain", False, False),
    ],
)
def test_a_tied_layer_that_is_not_saved_is_drawn(name: str, is_tied: bool, is_drawn: bool) -> None:
    model = GPT2LMHeadModel.from_pretrained(FOLDER / name)
    if not is_tied:
        model.lm_head.weight = torch.nn.Parameter(torch.ones(16, 4))
    torch.manual_seed(0)
    files.draw_as_then(model, str(FOLDER / name))
    found = torch.rand(3)
    torch.manual_seed(0)
    if is_drawn:
        torch.empty(16, 4).normal_()
    assert torch.equal(found, torch.rand(3))


@pytest.mark.parametrize(("kind", "draws"), [("bart", 3), ("t5", 1)])
def test_each_tied_layer_is_drawn_unless_the_model_is_as_a_whole(
    kind: str, draws: int, tmp_path: Path
) -> None:
    size = {"decoder_start_token_id": 0, "vocab_size": 16, "d_model": 4}
    bart = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    t5 = {"d_ff": 4, "d_kv": 4, "num_layers": 1, "num_heads": 1}
    config = AutoConfig.for_model(kind, **size, **{"bart": bart, "t5": t5}[kind])
    model = AutoModelForSeq2SeqLM.from_config(config)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    files.draw_as_then(model, str(tmp_path))
    found = torch.rand(3)
    torch.manual_seed(0)
    for _ in range(draws):
        torch.empty(16, 4).normal_()
    assert torch.equal(found, torch.rand(3))


def test_bits_are_told_in_the_words_of_the_installed_release() -> None:
    _, given = files.load_model(AnyModel, "m", load_in_8bit=True, load_in_4bit=False)
    assert list(given) == ["quantization_config"]
    assert given["quantization_config"].load_in_8bit
    assert files.load_model(AnyModel, "m", load_in_8bit=False)[1] == {files._DTYPE: torch.float32}
    with pytest.raises(ArgumentError, match="`load_in_4bit=True` stands beside a `quantization_config`"):
        files.load_model(AnyModel, "m", load_in_4bit=True, quantization_config=given["quantization_config"])
