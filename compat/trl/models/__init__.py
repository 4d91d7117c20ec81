"""Models with value heads, their reference models, and diffusion pipelines.

Mirrors `trl/models` of TRL 0.7.11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compat.trl.models.modeling_base import PreTrainedModelWrapper, create_reference_model
from compat.trl.models.modeling_value_head import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
)
from compat.trl.models.utils import setup_chat_format

if TYPE_CHECKING:
    from compat.trl.models.modeling_sd_base import (
        DDPOPipelineOutput,
        DDPOSchedulerOutput,
        DDPOStableDiffusionPipeline,
        DefaultDDPOStableDiffusionPipeline,
    )

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "DDPOPipelineOutput",
    "DDPOSchedulerOutput",
    "DDPOStableDiffusionPipeline",
    "DefaultDDPOStableDiffusionPipeline",
    "PreTrainedModelWrapper",
    "create_reference_model",
    "setup_chat_format",
]

SUPPORTED_ARCHITECTURES = (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)
"""The models that PPO can train."""

_OF_DIFFUSION = frozenset(name for name in __all__ if "DDPO" in name)


def __getattr__(name: str) -> Any:
    # These need diffusers, which is optional.
    if name in _OF_DIFFUSION:
        from compat.trl.models import modeling_sd_base

        return getattr(modeling_sd_base, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
