"""What HF's Trainer knows of a model, and switches on in it before training, by the names of each release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

if TYPE_CHECKING:
    from torch import nn

OF_THE_NEWEST = ("every_n_layers", "offload")
"""Entries of `activation_checkpointing_kwargs` that are the model's, and none of torch's."""


def checkpoint_activations(model: nn.Module, args: Any) -> None:
    """Have a model compute activations again in the backward, where the arguments say so."""
    if getattr(args, "activation_checkpointing", None):
        given = dict(args.activation_checkpointing_kwargs or {})
        own = {name: given.pop(name) for name in OF_THE_NEWEST if name in given}
        enable: Any = getattr(model, "activation_checkpointing_enable", None)
        if enable is not None:
            enable(activation_checkpointing_kwargs=given or None, **own)
            return
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given or None)  # type: ignore[operator]
    elif getattr(args, "gradient_checkpointing", None):
        given = args.gradient_checkpointing_kwargs
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given)  # type: ignore[operator]


def activated_neftune(hf: Any) -> Any:
    """Add NEFTune's noise to the embeddings, where the arguments say so.

    Args:
        hf: an HF Trainer.

    Returns:
        A handle whose `remove` ends it; None where there is no noise.
    """
    if hf.neftune_noise_alpha is None:
        return None
    if hasattr(transformers.Trainer, "_activate_neftune"):
        hf._activate_neftune(hf.model)
        return hf.neftune_hook_handle
    from transformers.integrations.neftune import activate_neftune

    return activate_neftune(hf.model, hf.neftune_noise_alpha, hf.accelerator)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model of HF's within the wrappers of PEFT and torch."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()  # type: ignore[operator]
        if inner is None or inner is model:
            return model
        model = inner


def shifts_labels(model: nn.Module) -> bool:
    """Whether a model's loss compares what it predicts at each token with the label of the next one."""
    model = unwrapped(model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    is_causal: bool = LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss
    return is_causal or type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def counts_first_label(hf: Any) -> bool:
    """Whether HF counts, among the items of a batch, labels that a model's loss has shifted away.

    Newer releases leave them out for models whose `loss_type` says that they are causal.

    Args:
        hf: an HF Trainer.
    """
    knows = getattr(hf, "_loss_shifts_labels", None)
    return knows is False and bool(hf.model_accepts_loss_kwargs) and shifts_labels(hf.model)
