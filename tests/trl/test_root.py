"""The root of the package: every name of TRL 0.7.11's, loaded when it is asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap

import pytest

import compat.trl
from compat.trl import trainer

NAMES = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "BestOfNSampler",
    "DPOTrainer",
    "DataCollatorForCompletionOnlyLM",
    "IterativeSFTTrainer",
    "ModelConfig",
    "PPOConfig",
    "PPOTrainer",
    "PreTrainedModelWrapper",
    "RewardConfig",
    "RewardTrainer",
    "SFTTrainer",
    "TextEnvironment",
    "TextHistory",
    "create_reference_model",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "is_bitsandbytes_available",
    "is_diffusers_available",
    "is_npu_available",
    "is_peft_available",
    "is_wandb_available",
    "is_xpu_available",
    "set_seed",
    "setup_chat_format",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    value = getattr(compat.trl, name)
    assert value.__name__ == name
    assert value.__module__.startswith("compat.trl.")
    assert name in dir(compat.trl)


HELPERS = {
    "dpo_trainer": "DPODataCollatorWithPadding create_reference_model disable_dropout_in_model"
    " is_wandb_available pad_to_length peft_module_casting_to_bf16",
    "ppo_trainer": "AdaptiveKLController BaseTrainer FixedKLController PPOConfig PPODecorators RunningMoments"
    " SUPPORTED_ARCHITECTURES WANDB_PADDING clip_by_value convert_to_scalar create_reference_model"
    " entropy_from_logits flatten_dict logprobs_from_logits masked_mean masked_var masked_whiten set_seed"
    " stack_dicts stats_to_np",
}


@pytest.mark.parametrize("module", HELPERS)
def test_helpers_in_the_modules_of_trainers(module: str) -> None:
    """Scripts that override methods take what TRL's module of the trainer has imported."""
    found = importlib.import_module(f"compat.trl.trainer.{module}")
    assert [name for name in HELPERS[module].split() if not hasattr(found, name)] == []


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match=r"TRL 0\.7\.11 has no such name"):
        _ = compat.trl.GRPOTrainer
    with pytest.raises(ImportError, match="SFTConfig"):
        from compat.trl.trainer import SFTConfig  # noqa: F401


def test_all_of_it() -> None:
    taken: dict[str, object] = {}
    exec("from compat.trl import *; from compat.trl.trainer import *", taken)  # noqa: S102
    assert taken["PPOTrainer"] is compat.trl.PPOTrainer
    assert {*compat.trl.__all__, *trainer.__all__} <= taken.keys()


LIGHT = """
    import sys
    for name in ("diffusers", "peft", "trl", "wandb"):
        sys.modules[name] = None
    import compat.trl, compat.trl.trainer
    assert not {"torch", "transformers"} & sys.modules.keys()
    from compat.trl import *
    assert "DDPOTrainer" not in globals() and PPOTrainer and SFTTrainer and DPOTrainer and TextEnvironment
    try:
        compat.trl.DefaultDDPOStableDiffusionPipeline
    except ImportError as error:
        print(error)
"""


def test_what_is_optional_is_not_missed() -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'lightning-hf-compat[diffusers]'" in done.stdout
