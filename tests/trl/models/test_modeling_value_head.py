from __future__ import annotations

import json
import logging
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Model, T5EncoderModel

from compat.errors import CheckpointError
from compat.trl.models import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
from compat.trl.models.modeling_value_head import ValueHead
from tests.trl.saved import FOLDER, FORMATS
from tests.trl.setups import parts

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {"causal": AutoModelForCausalLMWithValueHead, "seq2seq": AutoModelForSeq2SeqLMWithValueHead}
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
TOKENS = torch.tensor(EXPECTED["tokens"])

kinds = pytest.mark.parametrize("kind", KINDS)


def loaded(kind: str, **given: Any) -> Any:
    return KINDS[kind].from_pretrained(str(parts.FOLDER / kind), **given)


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"hidden_size": 5}, 5),
        ({"hidden_size": 5, "word_embed_proj_dim": 3}, 3),
        ({"hidden_size": 5, "is_encoder_decoder": True, "decoder": SimpleNamespace(hidden_size=4)}, 4),
        ({"hidden_size": 5, "is_encoder_decoder": False, "decoder": SimpleNamespace(hidden_size=4)}, 5),
        ({"get_text_config": lambda: SimpleNamespace(hidden_size=7)}, 7),
    ],
)
def test_the_head_is_as_wide_as_the_decoder_ends(config: dict[str, Any], width: int) -> None:
    assert ValueHead(SimpleNamespace(**config)).summary.in_features == width


def test_a_configuration_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match="SimpleNamespace does not tell its `hidden_size`"):
        ValueHead(SimpleNamespace())


def test_dropout_is_the_configurations_before_the_arguments() -> None:
    assert ValueHead(SimpleNamespace(hidden_size=2)).dropout.p == 0.1
    assert isinstance(
        ValueHead(SimpleNamespace(hidden_size=2), summary_dropout_prob=0).dropout, torch.nn.Identity
    )
    own = SimpleNamespace(hidden_size=2, summary_dropout_prob=0.3)
    assert ValueHead(own).dropout.p == 0.3
    with pytest.warns(UserWarning, match=r"`summary_dropout_prob=0.5`.*configuration says 0.3"):
        assert ValueHead(own, summary_dropout_prob=0.5).dropout.p == 0.3


def test_models_without_a_head_for_words_are_refused() -> None:
    bare = GPT2Model(AutoConfig.from_pretrained(FOLDER / "plain"))
    encoder = T5EncoderModel(AutoConfig.from_pretrained(parts.FOLDER / "seq2seq"))
    with pytest.raises(ValueError, match="GPT2Model has none of"):
        KINDS["causal"].from_pretrained(bare)
    with pytest.raises(ValueError, match="does not have a language model head"):
        KINDS["seq2seq"](encoder)


@kinds
def test_a_strategy_that_does_not_exist_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"`v_head_init_strategy='ones'`.*'normal' or None"):
        loaded(kind, v_head_init_strategy="ones")


@kinds
@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_what_is_saved_is_loaded(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    options = {**options, "max_shard_size": "20KB"} if "max_shard_size" in options else options
    model = loaded(kind)
    model.save_pretrained(tmp_path, **options)
    suffix = ".bin" if "safe_serialization" in options else ".safetensors"
    found = {"".join(path.suffixes) for path in tmp_path.iterdir() if "model" in path.name}
    assert found == {suffix, f"{suffix}.index.json"} if "max_shard_size" in options else {suffix}
    again = KINDS[kind].from_pretrained(str(tmp_path)).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], weight) for name, weight in model.state_dict().items())


@kinds
def test_weights_that_are_given_are_saved_and_left_as_they_are(kind: str, tmp_path: Path) -> None:
    model = loaded(kind)
    state = {name: torch.full_like(weight, 2) for name, weight in model.state_dict().items()}
    names = list(state)
    model.save_pretrained(tmp_path, state_dict=state)
    assert list(state) == names
    assert KINDS[kind].from_pretrained(str(tmp_path)).v_head.summary.bias.item() == 2


def test_the_whole_model_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("causal")
    monkeypatch.setattr(
        type(model.pretrained_model),
        "push_to_hub",
        lambda inner, name: inner.save_pretrained(tmp_path / name),
    )
    model.push_to_hub("pushed")
    saved = load_file(tmp_path / "pushed" / "model.safetensors")
    assert torch.equal(saved["v_head.summary.weight"], model.v_head.summary.weight)
    assert "transformer.wte.weight" in saved


@pytest.mark.parametrize("name", FORMATS)
def test_what_trl_has_saved_is_loaded(name: str) -> None:
    model = KINDS["causal"].from_pretrained(str(FOLDER / name)).eval()
    assert model.v_head.summary.weight.tolist() == EXPECTED["head"]
    assert model.v_head.summary.bias.tolist() == EXPECTED["bias"]
    torch.testing.assert_close(model(TOKENS)[2], torch.tensor(EXPECTED["values"]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_that_trl_has_saved_is_loaded(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "adapter", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(FOLDER / "plain")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = KINDS["causal"].from_pretrained(str(tmp_path)).eval()
    torch.testing.assert_close(model(TOKENS)[2], torch.tensor(EXPECTED["values_of_adapter"]))


def test_a_model_without_a_saved_head_gets_a_new_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "compat.trl")
    torch.manual_seed(0)
    first, second = (loaded("causal").v_head.summary.weight for _ in range(2))
    assert not torch.equal(first, second)
    assert "no weights of v_head are found. This IS expected if you are not resuming PPO" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("v_head.summary.bias"), "some of its weights, but no summary.bias"),
        (lambda state: state.update({"v_head.summary.weight": torch.ones(1, 3)}), "do not fit"),
    ],
    ids=["missing", "other"],
)
def test_half_a_head_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "plain", tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"`v_head`.*{message}"):
        KINDS["causal"].from_pretrained(str(tmp_path))


def test_weights_are_loaded_in_float32_unless_told(tmp_path: Path) -> None:
    parts.causal().to(torch.bfloat16).save_pretrained(tmp_path)
    load = KINDS["causal"].from_pretrained
    assert load(str(tmp_path)).pretrained_model.dtype == torch.float32
    half = load(str(tmp_path), torch_dtype=torch.bfloat16)
    assert half.pretrained_model.dtype == torch.bfloat16
    logits, _, values = half(TOKENS)
    assert (logits.dtype, values.dtype) == (torch.float32, torch.float32)


@kinds
def test_within_another_module_names_keep_their_prefix(kind: str) -> None:
    holder = torch.nn.ModuleDict({"policy": loaded(kind)})
    names = list(holder.state_dict())
    assert names == [f"policy.{name}" for name in holder["policy"].state_dict()]
    assert names[-2:] == ["policy.v_head.summary.weight", "policy.v_head.summary.bias"]
    positional = holder["policy"].state_dict({}, "p.", True)
    assert list(positional) == [name.replace("policy.", "p.", 1) for name in names]
    assert positional["p.v_head.summary.bias"].requires_grad


@kinds
# transformers 5 has another name for it.
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing.*is deprecated:FutureWarning")
def test_a_model_is_wrapped_by_its_constructor_alone(kind: str) -> None:
    model = KINDS[kind](getattr(parts, kind)())
    assert not model.is_peft_model
    assert hasattr(model, "is_encoder_decoder") == (kind == "seq2seq")
    model.gradient_checkpointing_enable()
    assert model.pretrained_model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    given = {"decoder_input_ids": TOKENS} if kind == "seq2seq" else {}
    assert model(TOKENS, **given)[2].shape == TOKENS.shape


@kinds
def test_the_head_follows_a_model_that_is_spread(kind: str) -> None:
    model = loaded(kind)
    model.pretrained_model.hf_device_map = {"": "disk"}
    with pytest.raises(ValueError, match="CPU & disk offloading is not supported"):
        model.post_init({})
    model.pretrained_model.hf_device_map = {"first": "meta", "second": 1}
    if kind == "seq2seq":
        model.pretrained_model.lm_head.to("meta")
    model.post_init({})
    assert model.is_sequential_parallel
    assert model.v_head.summary.weight.device.type == "meta"
    if kind == "causal":
        logits, loss, values = model(TOKENS)
        assert (logits.device.type, loss, values.device.type) == ("meta", None, "meta")


def test_a_cache_goes_in_and_is_used() -> None:
    model = loaded("causal").eval()
    whole = model(TOKENS)[2]
    first = model.pretrained_model(TOKENS[:, :4], use_cache=True)
    cache = first["cache" if "cache" in first else "past_key_values"]
    rest = model(TOKENS[:, 4:], past_key_values=cache, attention_mask=torch.ones_like(TOKENS))[2]
    torch.testing.assert_close(rest, whole[:, 4:])
