"""Parts of `PPOTrainer` that its constructor builds."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import ProjectConfiguration

from compat.fabric.accelerator import FabricAccelerator
from compat.trl.import_utils import is_npu_available, is_xpu_available
from compat.trl.models import create_reference_model
from compat.trl.trainer.utils import AdaptiveKLController, FixedKLController

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn
    from transformers import PreTrainedModel

    from compat.trl.trainer.ppo_config import PPOConfig


def build_accelerator(config: PPOConfig) -> FabricAccelerator:
    """Build the accelerator with the options of a configuration."""
    return FabricAccelerator(
        further=config.accelerator_kwargs,
        lightning=config.lightning,
        log_with=config.log_with,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        project_config=ProjectConfiguration(**(config.project_kwargs or {})),
    )


def complete_config(
    config: PPOConfig, accelerator: FabricAccelerator, is_encoder_decoder: bool, is_peft_model: bool
) -> None:
    """Set the sizes of the job and the kind of the model in a configuration, and start the trackers."""
    processes: int = accelerator.num_processes
    assert config.backward_batch_size is not None
    config.world_size = processes
    config.global_backward_batch_size = config.backward_batch_size * processes
    config.global_batch_size = config.batch_size * processes
    config.is_encoder_decoder = is_encoder_decoder
    config.is_peft_model = is_peft_model
    logged = config.to_dict()
    accelerator.init_trackers(
        config.tracker_project_name,
        config=logged if config.log_with == "tensorboard" else {"trl_ppo_trainer_config": logged},
        init_kwargs=config.tracker_kwargs or {},
    )


def reference_model(
    ref_model: nn.Module | None, model: PreTrainedModel, num_shared_layers: int | None, is_peft_model: bool
) -> nn.Module | None:
    """Return the reference model: the argument, a frozen copy of the model, or None for a PEFT model."""
    if ref_model is not None:
        if num_shared_layers is not None:
            warnings.warn(
                "`num_shared_layers` is ignored when `ref_model` is provided: these two share no layers.",
                UserWarning,
                stacklevel=3,
            )
        return ref_model
    if is_peft_model:
        return None
    copied: nn.Module = create_reference_model(model, num_shared_layers=num_shared_layers)
    return copied


def adapter_context(model: PreTrainedModel) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return the context that turns a PEFT model into its own reference; a null context for other models."""
    if not getattr(model, "is_peft_model", False):
        return contextlib.nullcontext
    disable: Callable[[], contextlib.AbstractContextManager[Any]] = model.pretrained_model.disable_adapter
    return disable


def input_device(model: nn.Module, accelerator: FabricAccelerator) -> torch.device:
    """Return the device of the inputs; the first accelerator device if the model spans several devices."""
    if not getattr(model, "is_sequential_parallel", False):
        device: torch.device = accelerator.device
        return device
    kind = "xpu" if is_xpu_available() else "npu" if is_npu_available() else "cuda"
    return torch.device(f"{kind}:0")


def kl_controller(config: PPOConfig) -> AdaptiveKLController | FixedKLController:
    """Build the controller of the KL coefficient."""
    if config.adap_kl_ctrl:
        return AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)  # type: ignore[arg-type]
    return FixedKLController(config.init_kl_coef)  # type: ignore[arg-type]


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    """Return an iterator over the parameters that require gradients."""
    return filter(lambda parameter: parameter.requires_grad, model.parameters())
