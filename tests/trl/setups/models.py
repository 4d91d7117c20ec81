"""Language models with value heads, what they are held against, and the format of chats."""

from __future__ import annotations

from typing import Any

import torch

from tests.trl.setups import parts

TOKENS = torch.tensor([[11, 24, 35, 46, 57, 68], [70, 61, 52, 43, 34, 25]])
# Filled up on the right: what a token gets that may look at nothing is up to each release of transformers.
FILLED = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def _wrapped(library: Any, kind: str, **given: Any) -> Any:
    """A model whose head has been drawn from a seed."""
    heads = library("models.modeling_value_head")
    name, model = {
        "causal": ("AutoModelForCausalLMWithValueHead", parts.causal),
        "seq2seq": ("AutoModelForSeq2SeqLMWithValueHead", parts.seq2seq),
    }[kind]
    inner = model()
    torch.manual_seed(5)
    return getattr(heads, name).from_pretrained(inner, **given)


def causal(library: Any) -> dict[str, Any]:
    """Logits, loss, values and gradients of a GPT-2 with a head as torch draws it."""
    model = _wrapped(library, "causal")
    torch.manual_seed(6)
    trained = model(TOKENS)[2]
    model.eval()
    logits, loss, values = model(TOKENS, attention_mask=FILLED, labels=TOKENS)
    (loss + values.square().mean()).backward()
    return {
        "head": model.v_head.summary.weight,
        "dropout": model.v_head.dropout.p,
        "values_with_dropout": trained,
        "values": values,
        "logits": logits[:, :, :16],
        "loss": loss,
        "gradient_of_head": model.v_head.summary.weight.grad,
        "gradient": model.pretrained_model.transformer.h[0].attn.c_attn.weight.grad,
        "names": sorted(model.state_dict()),
        "greedy": model.generate(TOKENS, max_new_tokens=5, do_sample=False, pad_token_id=0),
    }


def seq2seq(library: Any) -> dict[str, Any]:
    """The same of a T5, whose head is drawn from a normal distribution."""
    model = _wrapped(
        library,
        "seq2seq",
        v_head_init_strategy="normal",
        v_head_initializer_range=0.3,
        summary_dropout_prob=0.0,
    )
    model.eval()
    logits, loss, values = model(TOKENS, attention_mask=FILLED, labels=TOKENS)
    (loss + values.square().mean()).backward()
    return {
        "head": model.v_head.summary.weight,
        "bias": model.v_head.summary.bias,
        "dropout": type(model.v_head.dropout).__name__,
        "values": values,
        "logits": logits[:, :, :16],
        "loss": loss,
        "gradient": model.pretrained_model.decoder.block[0].layer[0].SelfAttention.q.weight.grad,
        "names": sorted(name for name in model.state_dict() if "v_head" in name),
        "greedy": model.generate(TOKENS, max_new_tokens=5, do_sample=False),
        "is_encoder_decoder": model.is_encoder_decoder,
    }


def seeded(library: Any) -> dict[str, Any]:
    """Heads that are drawn from a seed that was set before their model was loaded."""
    heads = library("models.modeling_value_head")
    found = {}
    for kind, name in (("Causal", "causal"), ("Seq2Seq", "seq2seq")):
        torch.manual_seed(7)
        load = getattr(heads, f"AutoModelFor{kind}LMWithValueHead").from_pretrained
        found[name] = load(str(parts.FOLDER / name)).v_head.summary.weight
        found[f"{name}_normal"] = load(
            str(parts.FOLDER / name), v_head_init_strategy="normal"
        ).v_head.summary.weight
        found[f"{name}_after"] = torch.rand(3)
    return found


def half(library: Any) -> dict[str, Any]:
    """A model in bfloat16: its head and its logits are not."""
    heads = library("models.modeling_value_head")
    inner = parts.causal().to(torch.bfloat16)
    torch.manual_seed(5)
    model = heads.AutoModelForCausalLMWithValueHead.from_pretrained(inner).eval()
    logits, _, values = model(TOKENS)
    return {"dtypes": [str(logits.dtype), str(values.dtype), str(model.v_head.summary.weight.dtype)]}


def references(library: Any) -> dict[str, Any]:
    """What is frozen in a policy and in its reference."""
    base = library("models.modeling_base")
    found = {}
    for name, given in {
        "whole": {},
        "one": {"num_shared_layers": 1},
        "none": {"num_shared_layers": 0},
        "pattern": {"num_shared_layers": 1, "pattern": "h.{layer}.mlp"},
    }.items():
        model = _wrapped(library, "causal")
        reference = base.create_reference_model(model, **given)
        found[f"{name}_frozen"] = [n for n, each in model.named_parameters() if not each.requires_grad]
        found[f"{name}_free"] = [n for n, each in reference.named_parameters() if each.requires_grad]
        found[f"{name}_training"] = [model.training, reference.training]
    return found


def chats(library: Any) -> dict[str, Any]:
    """Tokens, template and embeddings of a model made ready for chats."""
    utils = library("models.utils")
    tokenizer, model = parts.tokenizer(), parts.causal()
    torch.manual_seed(4)
    model, tokenizer = utils.setup_chat_format(model, tokenizer, resize_to_multiple_of=8)
    tokens = utils.ChatMlSpecialTokens()
    messages = [{"role": "user", "content": "how is it?"}, {"role": "assistant", "content": "good."}]
    config = model.generation_config
    return {
        "template": tokens.chat_template,
        "begins": [tokens.system, tokens.user, tokens.assistant],
        "special": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token],
        "ids": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "of_generation": [config.bos_token_id, config.eos_token_id, config.pad_token_id],
        "rows": model.get_input_embeddings().weight.shape[0],
        "entries": len(tokenizer),
        "text": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        "tokens": list(tokenizer("<|im_start|>user\nhow is it?<|im_end|>").input_ids),
    }
