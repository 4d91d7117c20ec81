"""TRL 0.7's interface on Lightning and on current transformers; `trl` itself need not be installed.

Scripts of 2023 and 2024 change one word, `from compat.trl import PPOTrainer`, or none: `compat run script.py`
detects that a script is of that time. Modules and names are those of TRL 0.7.11.
"""

from __future__ import annotations

from compat.trl.lazy import lazily

__version__ = "0.7.11"
"""The release that this package mirrors; scripts of that time compare it."""

HOMES = {
    "core": ("set_seed",),
    "environment": ("TextEnvironment", "TextHistory"),
    "extras": ("BestOfNSampler",),
    "import_utils": (
        "is_bitsandbytes_available",
        "is_diffusers_available",
        "is_npu_available",
        "is_peft_available",
        "is_wandb_available",
        "is_xpu_available",
    ),
    "models": (
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
    ),
    "trainer": (
        "DDPOConfig",
        "DDPOTrainer",
        "DPOTrainer",
        "DataCollatorForCompletionOnlyLM",
        "IterativeSFTTrainer",
        "ModelConfig",
        "PPOConfig",
        "PPOTrainer",
        "RewardConfig",
        "RewardTrainer",
        "SFTTrainer",
    ),
    "trainer.utils": ("get_kbit_device_map", "get_peft_config", "get_quantization_config"),
}
"""Module → the names that TRL 0.7.11 exports from it at its root."""

MODULES = ("core", "environment", "extras", "import_utils", "models", "trainer")
"""The modules that `import trl` makes available in TRL 0.7.11."""

__all__, __getattr__, __dir__ = lazily(__name__, HOMES, MODULES, lambda name: "DDPO" in name)
