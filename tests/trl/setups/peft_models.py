"""Adapters with value heads, on disk and back, and reward adapters beside them."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import peft
import torch

from tests.trl.setups import parts

TOKENS = torch.tensor([[11, 24, 35, 46, 57, 68], [70, 61, 52, 43, 34, 25]])


def adapter(library: Any) -> dict[str, Any]:
    """A new adapter: its values, its gradients, and what is saved and loaded of it."""
    kind = library("models.modeling_value_head").AutoModelForCausalLMWithValueHead
    model = _filled(kind.from_pretrained(str(parts.FOLDER / "causal"), peft_config=_lora()))
    logits, loss, values = model.eval()(TOKENS, labels=TOKENS)
    (loss + values.square().mean()).backward()
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    found = {
        "logits": logits[:, :, :16],
        "loss": loss,
        "values": values,
        "gradient": next(each.grad for name, each in model.named_parameters() if "lora_B" in name),
        "trained": trained,
        "state": sorted(model.state_dict()),
        "is_peft_model": model.is_peft_model,
        "supports": model.supports_rm_adapter,
        "greedy": model.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False, pad_token_id=0),
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found["files"] = sorted(name for name in os.listdir(folder) if name != "README.md")
        for name, given in {"frozen": {}, "trainable": {"is_trainable": True}}.items():
            again = kind.from_pretrained(folder, **given).eval()
            found[f"{name}_values"] = again(TOKENS)[2]
            found[f"{name}_trained"] = [n for n, each in again.named_parameters() if each.requires_grad]
    return found


def seeded(library: Any) -> dict[str, Any]:
    """An adapter and a head that are drawn from a seed that was set before their model was loaded."""
    torch.manual_seed(7)
    kind = library("models.modeling_value_head").AutoModelForCausalLMWithValueHead
    model = kind.from_pretrained(str(parts.FOLDER / "causal"), peft_config=_lora())
    drawn = {name: each for name, each in model.named_parameters() if "lora_A" in name}
    return {"head": model.v_head.summary.weight, **drawn, "after": torch.rand(3)}


def seq2seq(library: Any) -> dict[str, Any]:
    """An adapter of an encoder-decoder model that was there before."""
    kind = library("models.modeling_value_head").AutoModelForSeq2SeqLMWithValueHead
    config = peft.LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    model = _filled(kind.from_pretrained(peft.get_peft_model(parts.seq2seq(), config))).eval()
    _, loss, values = model(input_ids=TOKENS, labels=TOKENS)
    return {"loss": loss, "values": values, "state": sorted(model.state_dict())}


def reward(library: Any) -> dict[str, Any]:
    """Scores of an adapter that was trained as a reward model, and the policy after them."""
    kind = library("models.modeling_value_head").AutoModelForCausalLMWithValueHead
    judge = peft.get_peft_model(
        parts.classifier(),
        peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="SEQ_CLS", fan_in_fan_out=True),
    )
    with tempfile.TemporaryDirectory() as folder:
        _filled(judge, seed=8).save_pretrained(folder)
        model = kind.from_pretrained(
            str(parts.FOLDER / "causal"),
            peft_config=_lora(),
            reward_adapter=folder,
            reward_adapter_name="judge",
        )
    for name, weight in sorted(model.named_parameters()):
        if ".default." in name or "v_head" in name:
            _draw(weight, 9)
    before = model.eval()(TOKENS)[2]
    scores = model.compute_reward_score(TOKENS, attention_mask=torch.ones_like(TOKENS))
    return {
        "before": before,
        "scores": scores,
        "after": model(TOKENS)[2],
        "head": model.score.weight,
        "has_bias": model.score.bias is not None,
        "head_trains": model.score.weight.requires_grad,
        "trained": [n for n, each in model.named_parameters() if each.requires_grad],
        "named": [model.supports_rm_adapter, model.rm_adapter_name, model.policy_adapter_name],
        "training": model.pretrained_model.training,
    }


def _lora() -> Any:
    return peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )


def _filled(model: Any, seed: int = 7) -> Any:
    """A model whose adapters and heads are drawn from a seed."""
    for name, weight in sorted(model.named_parameters()):
        if "lora_" in name or "v_head" in name or "score" in name:
            _draw(weight, seed)
            seed += 1
    return model


def _draw(weight: Any, seed: int) -> None:
    with torch.no_grad():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
