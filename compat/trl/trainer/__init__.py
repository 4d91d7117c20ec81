"""The trainers of TRL 0.7.11; each is loaded when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

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
"""A module → the names that TRL 0.7.11 offers of it in this package."""

_HOME_OF = {name: home for home, names in HOMES.items() for name in names}

# Without diffusers, TRL has no DDPOTrainer: `import *` passes it over.
_HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None

__all__ = sorted(name for name in _HOME_OF if _HAS_DIFFUSERS or name != "DDPOTrainer")  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    home = name if name in HOMES else _HOME_OF.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}; TRL 0.7.11 has no such name"
        raise AttributeError(msg)
    module = importlib.import_module(f"{__name__}.{home}")
    value = module if name in HOMES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *HOMES})
