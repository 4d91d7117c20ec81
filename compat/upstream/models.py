"""What HF's Trainer knows of a model, and switches on in it before training, by the names of each release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from torch._dynamo import OptimizedModule
from transformers import trainer as hf_trainer
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from compat.upstream.features import accepts

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from transformers import Trainer, TrainingArguments

OF_THE_NEWEST = ("every_n_layers", "offload")
"""Entries of `activation_checkpointing_kwargs` that are the model's, and none of torch's."""


def uncompiled(model: object) -> Any:
    """The module that a script has given to `torch.compile`, which calls itself compiled from then on.

    HF reads columns, labels and keys off the model, and the wrapper has those of any module.

    Args:
        model: what `torch.compile` gave, or any other object, which is returned as it is.
    """
    if not isinstance(model, OptimizedModule):
        return model
    module: Any = model._orig_mod
    # As in `Module.compile`.
    module._compiled_call_impl = model.dynamo_ctx(module._call_impl)
    return module


def checkpoint_activations(model: nn.Module, args: TrainingArguments) -> None:
    """Enable activation checkpointing in a model, if the arguments request it."""
    if getattr(args, "activation_checkpointing", None):
        given, own = _split(args.activation_checkpointing_kwargs)
        enable: Callable[..., Any] | None = getattr(model, "activation_checkpointing_enable", None)
        if enable is not None:
            enable(activation_checkpointing_kwargs=given or None, **own)
            return
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given or None)  # type: ignore[operator]
    elif getattr(args, "gradient_checkpointing", None):
        given, own = _split(args.gradient_checkpointing_kwargs)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given or None, **own)  # type: ignore[operator]


def _split(given: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that torch takes, and those that the model takes; from 5.17 to 5.22 under an older name."""
    rest = dict(given or {})
    return rest, {name: rest.pop(name) for name in OF_THE_NEWEST if name in rest}


def activated_neftune(hf: Trainer) -> Any:
    """Add NEFTune's noise to the embeddings, if the arguments request it.

    Args:
        hf: an HF Trainer.

    Returns:
        A handle whose `remove` ends it; None without noise.
    """
    if hf.neftune_noise_alpha is None:
        return None
    if hasattr(transformers.Trainer, "_activate_neftune"):
        hf._activate_neftune(hf.model)
        return hf.neftune_hook_handle
    from transformers.integrations.neftune import activate_neftune

    return activate_neftune(hf.model, hf.neftune_noise_alpha, hf.accelerator)


def deactivate_neftune(hf: Trainer) -> None:
    """Remove NEFTune's noise, if the arguments request it.

    Args:
        hf: an HF Trainer.
    """
    if hf.neftune_noise_alpha is None:
        return
    if hasattr(transformers.Trainer, "_deactivate_neftune"):
        hf._deactivate_neftune(hf.model)
        return
    from transformers.integrations.neftune import deactivate_neftune as deactivate

    deactivate(hf.model, hf.neftune_hook_handle, hf.accelerator)


def update_fsdp_plugin_for_peft(hf: Trainer) -> None:
    """Make accelerate's FSDP plugin wrap the layers that an adapter adds.

    Args:
        hf: an HF Trainer; without FSDP or an adapter nothing changes.
    """
    if hasattr(transformers.Trainer, "_fsdp_qlora_plugin_updates"):
        hf._fsdp_qlora_plugin_updates()
    elif hf.is_fsdp_enabled and hf_trainer._is_peft_model(hf.model):
        from transformers.integrations.fsdp import update_fsdp_plugin_peft

        update_fsdp_plugin_peft(hf.model, hf.accelerator)


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


def counts_first_label(hf: Trainer) -> bool:
    """Whether HF counts, among the items of a batch, labels that a model's loss has shifted away.

    Newer releases leave them out for models whose `loss_type` says that they are causal.

    Args:
        hf: an HF Trainer.
    """
    knows = getattr(hf, "_loss_shifts_labels", None)
    return knows is False and bool(hf.model_accepts_loss_kwargs) and shifts_labels(hf.model)


def cache_argument(model: nn.Module, cache: object) -> dict[str, Any]:
    """The cache of a model of HF's, by the name that its `forward` has for it under this release."""
    name = "cache" if accepts(unwrapped(model).forward, "cache") else "past_key_values"
    return {name: cache}
