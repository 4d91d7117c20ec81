"""Tiny models, one builder per kind of forward signature and output a Trainer meets.

Builders draw their weights from the global generator, so a seeded caller gets the same model again.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 48
CLASSES = 3


class Regression(nn.Module):
    """A plain module: two linear layers with dropout between them.

    Args:
        dropout: probability of the dropout layer.
        as_tuple: return `(loss, logits)` in place of a dictionary.
        memory: largest training batch that "fits"; above it the forward raises what CUDA raises.
    """

    def __init__(self, dropout: float = 0.0, as_tuple: bool = False, memory: int | None = None) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 1)
        self.as_tuple = as_tuple
        self.memory = memory

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None):
        """Predict from x (batch, 4); with labels (batch,) also give the mean squared error."""
        if self.memory is not None and self.training and len(x) > self.memory:
            msg = "CUDA out of memory."
            raise RuntimeError(msg)
        logits = self.head(self.dropout(torch.tanh(self.hidden(x)))).squeeze(-1)
        outputs = {"logits": logits}
        if labels is not None:
            outputs = {"loss": nn.functional.mse_loss(logits, labels), **outputs}
        return tuple(outputs.values()) if self.as_tuple else outputs


def regression() -> nn.Module:
    """The plain module without dropout."""
    return Regression()


def noisy_regression() -> nn.Module:
    """The plain module with dropout: its losses show every misplaced random draw."""
    return Regression(dropout=0.3)


def tuple_regression() -> nn.Module:
    """The plain module that answers with a tuple."""
    return Regression(as_tuple=True)


def hungry_regression() -> nn.Module:
    """The plain module that runs out of memory above five rows."""
    return Regression(memory=5)


def sleeping_regression() -> nn.Module:
    """The plain module with dropout, handed over in eval mode as `from_pretrained` does."""
    return noisy_regression().eval()


def half_frozen_regression() -> nn.Module:
    """The plain module with its first layer frozen."""
    model = Regression()
    model.hidden.requires_grad_(False)
    return model


class Normalized(nn.Module):
    """Batch statistics, and a parameter that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None):
        """Predict from x (batch, 4)."""
        logits = self.head(self.norm(x)).squeeze(-1)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}


class Caching(Regression):
    """Keeps a tensor of its first forward pass and trains with it later.

    A tensor made in inference mode could not be saved for a backward pass.
    """

    scale: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None):
        """Predict from x (batch, 4), scaled by what the first batch was like."""
        if self.scale is None:
            self.scale = x.abs().mean(dim=0)
        return super().forward(x * self.scale * self.hidden.weight.mean(dim=0), labels)


def normalized() -> nn.Module:
    """The module with batch statistics."""
    return Normalized()


def caching() -> nn.Module:
    """The module that keeps a tensor."""
    return Caching()


def _bert_config(**changes) -> BertConfig:
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        num_labels=CLASSES,
        **changes,
    )


def bert() -> nn.Module:
    """A sequence classifier with BERT's usual dropout."""
    return BertForSequenceClassification(_bert_config())


def talkative_bert() -> nn.Module:
    """A sequence classifier that also returns its hidden states."""
    return BertForSequenceClassification(_bert_config(output_hidden_states=True))


def tagger() -> nn.Module:
    """A token classifier: its predictions are as long as the longest row of a batch."""
    return BertForTokenClassification(_bert_config())


def gpt2() -> nn.Module:
    """A causal language model: takes `num_items_in_batch` and ties two weights."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


def t5() -> nn.Module:
    """An encoder-decoder without a decoder start token of its own kind (T5 starts with the pad)."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def bart() -> nn.Module:
    """An encoder-decoder with learned positions."""
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        forced_eos_token_id=2,
    )
    return BartForConditionalGeneration(config)


def vit() -> nn.Module:
    """An image classifier on 8 x 8 pictures."""
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=CLASSES,
    )
    return ViTForImageClassification(config)


def _lora(model: nn.Module, task: str, given: dict | None = None, **changes) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type=task, r=2, lora_alpha=4, lora_dropout=0.1, **changes)
    return get_peft_model(model, config, **(given or {}))


def lora_bert() -> nn.Module:
    """The classifier with low-rank adapters and a trained head."""
    return _lora(bert(), "SEQ_CLS", target_modules=["query", "value"])


def named_lora_bert() -> nn.Module:
    """The classifier with one adapter of another name than PEFT's own."""
    return _lora(bert(), "SEQ_CLS", {"adapter_name": "x"}, target_modules=["query", "value"])


def two_lora_bert() -> nn.Module:
    """The classifier with two adapters, of which "default" is trained."""
    model = lora_bert()
    model.add_adapter("x", model.peft_config["default"])
    model.set_adapter("default")
    return model


def lora_gpt2() -> nn.Module:
    """The language model with low-rank adapters."""
    return _lora(gpt2(), "CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
