"""The trainers of TRL 0.7.11; each is loaded on first access."""

from __future__ import annotations

from compat.trl.lazy import lazily

HOMES = {
    "base": ("BaseTrainer",),
    "ddpo_config": ("DDPOConfig",),
    "ddpo_trainer": ("DDPOTrainer",),
    "dpo_trainer": ("DPOTrainer",),
    "iterative_sft_trainer": ("IterativeSFTTrainer",),
    "model_config": ("ModelConfig",),
    "ppo_config": ("PPOConfig",),
    "ppo_trainer": ("PPOTrainer",),
    "reward_config": ("RewardConfig",),
    "reward_trainer": ("RewardTrainer", "compute_accuracy"),
    "sft_trainer": ("SFTTrainer",),
    "utils": (
        "AdaptiveKLController",
        "ConstantLengthDataset",
        "DataCollatorForCompletionOnlyLM",
        "FixedKLController",
        "RunningMoments",
        "disable_dropout_in_model",
        "peft_module_casting_to_bf16",
    ),
}
"""Module → the names that TRL 0.7.11 exports from it in this package."""

__all__, __getattr__, __dir__ = lazily(__name__, HOMES, HOMES, lambda name: name == "DDPOTrainer")
