from __future__ import annotations

import json
import logging
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from compat.errors import MissingLibraryError
from compat.trl.models import (
    AutoModelForCausalLMWithValueHead,
    PreTrainedModelWrapper,
    adapters,
    create_reference_model,
    modeling_base,
)
from tests.trl.setups import parts

if TYPE_CHECKING:
    from pathlib import Path

# PEFT asks models of transformers 5 by a name that these have since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CAUSAL = str(parts.FOLDER / "causal")
load = AutoModelForCausalLMWithValueHead.from_pretrained


def lora(**given: Any) -> Any:
    return peft.LoraConfig(
        **{"r": 2, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True, **given}
    )


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward adapter on disk."""
    folder = str(tmp_path_factory.mktemp("judge"))
    peft.get_peft_model(parts.classifier(), lora(task_type="SEQ_CLS")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peft_config": {"r": 2}}, "`peft_config` argument should be an instance of `peft.PeftConfig`"),
        ({"reward_adapter": 3}, "`reward_adapter` argument should be a string"),
        ({"reward_adapter": "folder"}, "reward_adapter can only be used with a PeftModel"),
        (
            {"peft_config": peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")},
            "PromptLearningConfig is not supported for PPO training",
        ),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(CAUSAL, **given)


def test_only_models_are_wrapped() -> None:
    with pytest.raises(ValueError, match=r"should be a string or a PreTrainedModel, but is <class 'int'>"):
        load(3)


def test_without_peft_models_load_and_adapters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = lora()
    assert len(AutoModelForCausalLMWithValueHead.supported_pretrained_model_architectures) == 3
    monkeypatch.setitem(sys.modules, "peft", None)
    assert len(AutoModelForCausalLMWithValueHead.supported_pretrained_model_architectures) == 1
    assert not load(parts.causal()).is_peft_model
    with pytest.raises(MissingLibraryError, match=r"`peft_config=LoraConfig.*pip install peft"):
        load(parts.causal(), peft_config=config)


def test_an_adapter_is_kept_where_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "compat.trl")
    adapted = peft.get_peft_model(parts.causal(), lora())
    assert load(adapted, peft_config=lora(r=4)).pretrained_model is adapted
    assert "`peft_config` argument ignored" in caplog.text


def test_arguments_go_to_whom_they_are_for() -> None:
    given = {"summary_dropout_prob": 0.0, "use_gradient_checkpointing": True, "revision": "x", "model": 1}
    own, for_model, for_kbit = AutoModelForCausalLMWithValueHead._split_kwargs(given)
    assert own == {"summary_dropout_prob": 0.0}
    assert for_model == {"revision": "x", "model": 1}
    assert for_kbit == {"use_gradient_checkpointing": True}


def test_an_argument_that_nobody_takes_is_told() -> None:
    with pytest.warns(UserWarning, match=r"`dropout=0.5`: AutoModelForCausalLM.* has no such argument"):
        AutoModelForCausalLMWithValueHead(parts.causal(), dropout=0.5)


def test_a_model_in_bits_goes_to_the_current_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "compat.trl")
    seen: dict[str, Any] = {}

    def loading(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return parts.causal()

    prepared = []

    def prepare(model: Any, use_gradient_checkpointing: bool = True) -> Any:
        prepared.append(use_gradient_checkpointing)
        return model

    monkeypatch.setattr(adapters, "load_model", loading)
    monkeypatch.setattr(peft, "prepare_model_for_kbit_training", prepare)
    model = load(CAUSAL, load_in_8bit=True, peft_config=lora(), use_gradient_checkpointing=False)
    assert seen == {"load_in_8bit": True, "device_map": {"": model.current_device}}
    assert prepared == [False]
    assert "The `device_map` argument is not provided" in caplog.text
    load(CAUSAL, load_in_8bit=True, device_map="auto")
    assert seen["device_map"] == "auto"


@pytest.mark.parametrize(
    ("kind", "expected"), [("is_xpu_available", "xpu:3"), ("is_npu_available", "npu:3"), (None, "cpu")]
)
def test_the_current_device_is_that_of_the_process(
    kind: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if kind is not None:
        monkeypatch.setattr(modeling_base, kind, lambda: True)
    assert PreTrainedModelWrapper._get_current_device() == expected
    if kind is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert PreTrainedModelWrapper._get_current_device() == 3


def test_saved_heads_of_adapters_are_uploaded_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(CAUSAL, peft_config=lora())
    monkeypatch.setattr(
        type(model.pretrained_model),
        "push_to_hub",
        lambda inner, name: inner.save_pretrained(tmp_path / name),
    )
    model.push_to_hub("pushed")
    model.save_pretrained(save_directory=str(tmp_path / "pickles"), safe_serialization=False)
    model.save_pretrained(str(tmp_path / "of_another_rank"), is_main_process=False)
    assert not (tmp_path / "of_another_rank" / "pytorch_model.bin").exists()
    assert (tmp_path / "pickles" / "adapter_model.bin").exists()
    for name in ("pushed", "pickles"):
        again = load(str(tmp_path / name))
        assert again.is_peft_model
        assert torch.equal(again.v_head.summary.weight, model.v_head.summary.weight)
    assert "save_pretrained" not in vars(model.pretrained_model)


def test_scores_come_with_their_own_adapter_and_leave_the_policys(judge: str) -> None:
    model = load(CAUSAL, peft_config=lora(), reward_adapter=judge)
    tokens = torch.arange(5, 9).view(1, 4)
    assert model.compute_reward_score(tokens).shape == (1, 4, 1)
    assert model.pretrained_model.active_adapter == "default"
    model.score = None
    with pytest.raises(TypeError):
        model.compute_reward_score(tokens)
    assert model.pretrained_model.active_adapter == "default"
    with pytest.raises(ValueError, match="does not support reward modeling adapter"):
        load(CAUSAL).compute_reward_score(tokens)


def test_a_reward_adapter_may_be_pickled_and_have_a_bias(judge: str, tmp_path: Path) -> None:
    for name in os.listdir(judge):
        (tmp_path / name).write_bytes((tmp_path.__class__(judge) / name).read_bytes())
    weights = load_file(tmp_path / "adapter_model.safetensors")
    (name,) = (name for name in weights if "score" in name)
    head = {"score.bias": torch.tensor([0.5]), "score.weight": weights[name]}
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(weights | {name.replace("weight", "bias"): head["score.bias"]}, tmp_path / "adapter_model.bin")
    score = AutoModelForCausalLMWithValueHead._score_head("folder", head, torch.bfloat16)
    assert (score.bias.dtype, score.bias.item()) == (torch.bfloat16, 0.5)
    assert not any(each.requires_grad for each in score.parameters())


@pytest.mark.parametrize("is_there", [True, False])
def test_a_reward_adapter_without_its_head_is_refused(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_there:
        save_file({"lora_A.weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    fake = SimpleNamespace(load_adapter=lambda *_, **__: None, train=lambda: None, dtype=torch.float32)
    message = "no head with a name in" if is_there else "Could not find adapter model in the Hub"
    with pytest.raises(ValueError, match=f"`reward_adapter=.*{message}"):
        AutoModelForCausalLMWithValueHead.add_and_load_reward_modeling_adapter(fake, str(tmp_path))


def test_a_wrapper_says_what_it_lacks() -> None:
    bare = PreTrainedModelWrapper(parts.causal())
    for method in (bare.state_dict, bare.post_init, bare.push_to_hub):
        with pytest.raises(NotImplementedError, match="PreTrainedModelWrapper does not say what it"):
            method()


def test_a_reference_is_refused_where_weights_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_base, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"ZeRO-3 is enabled.*from_pretrained"):
        create_reference_model(parts.causal())


def test_layers_that_are_not_found_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="`num_shared_layers=7`: Layer pattern could not be matched"):
        create_reference_model(parts.causal(), num_shared_layers=7)
    caplog.set_level(logging.WARNING, "compat.trl")
    create_reference_model(parts.causal(), num_shared_layers=1, pattern="block.{layer}.")
    assert "no layers matched in the model" in caplog.text


def test_a_reference_stays_what_the_policy_was() -> None:
    model = load(parts.causal())
    reference = create_reference_model(model, num_shared_layers=1)
    optimizer = torch.optim.SGD((each for each in model.parameters() if each.requires_grad), lr=0.1)
    tokens = torch.arange(5, 9).view(1, 4)
    model(tokens, labels=tokens)[1].backward()
    optimizer.step()
    changed = {
        name.split(".")[3] if ".h." in name else name.rpartition(".")[0]
        for name, each in model.named_parameters()
        if not torch.equal(each, reference.get_parameter(name))
    }
    assert changed == {"1", "pretrained_model.transformer.ln_f"}


def test_a_local_index_that_names_a_missing_shard_is_refused(tmp_path: Path) -> None:
    model = load(CAUSAL)
    model.save_pretrained(str(tmp_path), max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = index["weight_map"]["v_head.summary.weight"]
    (tmp_path / shard).unlink()
    with pytest.raises(OSError, match=f"{shard}.*missing"):
        load(str(tmp_path))
