"""Shared helpers of TRL 0.7's trainers: KL controllers, running statistics, and functions on models.

Mirrors `trl.trainer.utils` of 0.7.11. Its collators and its packing are re-exported from `compat.trl.data`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import BitsAndBytesConfig

from compat.trl.algorithms import moments
from compat.trl.algorithms.dpo_tokens import pad_to_length
from compat.trl.algorithms.moments import Moments
from compat.trl.data.collators import (
    DataCollatorForCompletionOnlyLM,
    DPODataCollatorWithPadding,
    RewardDataCollatorWithPadding,
)
from compat.trl.data.packing import ConstantLengthDataset
from compat.trl.import_utils import is_unsloth_available, is_xpu_available

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator
    from peft import LoraConfig

    from compat.trl.algorithms.moments import Number
    from compat.trl.trainer.model_config import ModelConfig

__all__ = [
    "AdaptiveKLController",
    "ConstantLengthDataset",
    "DPODataCollatorWithPadding",
    "DataCollatorForCompletionOnlyLM",
    "FixedKLController",
    "PerPromptStatTracker",
    "RewardDataCollatorWithPadding",
    "RunningMoments",
    "compute_accuracy",
    "disable_dropout_in_model",
    "exact_div",
    "get_global_statistics",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "neftune_post_forward_hook",
    "pad_to_length",
    "peft_module_casting_to_bf16",
    "trl_sanitze_kwargs_for_tagging",
]

_KL_ERROR_BOUND = 0.2
_STD_FLOOR = 1e-6


class AdaptiveKLController:
    """A KL coefficient with a controller: it grows above the target divergence, and shrinks below it.

    Ziegler et al., Fine-Tuning Language Models from Human Preferences (arXiv:1909.08593), section 2.2.

    Args:
        init_kl_coef: the initial coefficient.
        target: the target divergence, in nats per sequence.
        horizon: the number of samples after which an error of 1 doubles the coefficient.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float) -> None:
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        """Adjust the coefficient to the divergence of `n_steps` samples.

        Args:
            current: the divergence, a number, or an array or tensor of one.
            n_steps: samples.
        """
        shown = getattr(current, "item", lambda: current)()
        error = float(np.clip(shown / self.target - 1, -_KL_ERROR_BOUND, _KL_ERROR_BOUND))
        self.value *= 1 + error * n_steps / self.horizon


class FixedKLController:
    """A constant KL coefficient.

    Args:
        kl_coef: the coefficient.
    """

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Do nothing; the counterpart of `AdaptiveKLController.update`."""


class RunningMoments:
    """Mean and deviation of a stream of numbers, over all processes.

    `mean`, `var` (biased), `std` (unbiased) and `count` are those of all numbers so far; see
    `compat.trl.algorithms.moments`.

    Args:
        accelerator: has `use_distributed`, and reduces over processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.mean, self.var, self.count = moments.EMPTY
        self.std: Number = 1
        self.accelerator = accelerator

    @torch.no_grad()
    def update(self, xs: torch.Tensor) -> tuple[float, float]:
        """Add a batch.

        Args:
            xs: numbers, in any shape.

        Returns:
            Mean and unbiased deviation of the batch.
        """
        batch = self._moments(xs)
        stream = moments.merge(Moments(self.mean, self.var, self.count), batch)
        self.mean, self.var, self.count = stream
        self.std = moments.unbiased_std(stream)
        return torch.as_tensor(batch.mean).item(), moments.unbiased_std(batch).item()

    def _moments(self, xs: torch.Tensor) -> Moments:
        if not self.accelerator.use_distributed:
            return moments.of_batch(xs)
        mean, var, count = get_global_statistics(self.accelerator, xs)
        return Moments(mean.float(), var.float(), count)


@torch.no_grad()
def get_global_statistics(
    accelerator: Accelerator, xs: torch.Tensor, mask: torch.Tensor | None = None, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute mean, biased variance and count of numbers over all processes.

    Args:
        accelerator: sums over the processes.
        xs: numbers, in any shape; zero wherever `mask` is zero.
        mask: of the same shape, 1 where a number counts.
        device: the device of the results.

    Returns:
        Three scalars.
    """
    xs = xs.to(accelerator.device)
    weights = torch.ones_like(xs) if mask is None else mask.to(xs.device)
    exact = torch.promote_types(xs.dtype, torch.float32)
    total, count = accelerator.reduce(torch.stack([xs.sum().to(exact), weights.sum(dtype=exact)]))
    mean = total / count
    squares = accelerator.reduce(((xs - mean) ** 2 * weights).sum())
    return mean.to(device), (squares / count).to(device), count.to(device)


def compute_accuracy(eval_pred: tuple[Any, Any]) -> dict[str, float]:
    """Compute the fraction of pairs in which the chosen side has the higher reward.

    Args:
        eval_pred: rewards (batch, 2), chosen ones first, and labels (batch,), zero if the first is correct;
            arrays or tensors.

    Returns:
        `{"accuracy": fraction}`.

    Warns:
        UserWarning: some pairs have equal rewards; they count for the first side.
    """
    predictions, labels = eval_pred
    ties = int((predictions[:, 0] == predictions[:, 1]).sum())
    if ties:
        warnings.warn(
            f"There are {ties} out of {len(predictions)} instances where the predictions for both options "
            "are equal. They count as if the first were preferred, so the accuracy can be misleading.",
            stacklevel=2,
        )
    preferred = np.asarray(predictions.argmax(axis=1))
    return {"accuracy": float(np.mean(preferred == np.asarray(labels)))}


def disable_dropout_in_model(model: torch.nn.Module) -> None:
    """Set the probability of every `torch.nn.Dropout` to zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0


def exact_div(a: int, b: int, a_str: str, b_str: str, custom_error_message: str = "") -> int:
    """Divide exactly, without a remainder.

    Args:
        a: the dividend.
        b: the divisor.
        a_str: the name of `a` in the error.
        b_str: the name of `b` in the error.
        custom_error_message: the beginning of the error.

    Returns:
        The quotient.

    Raises:
        ValueError: there is a remainder.
    """
    quotient, remainder = divmod(a, b)
    if remainder:
        msg = f"{custom_error_message}, {a_str}={a}, {b_str}={b}, inexact division: {a} / {b} = {a / b}"
        raise ValueError(msg)
    return quotient


class PerPromptStatTracker:
    """Computes advantages of rewards relative to recent rewards of the same prompt.

    Black et al., Training Diffusion Models with Reinforcement Learning (arXiv:2305.13301), section 4.2.

    Args:
        buffer_size: the number of rewards to store for a prompt.
        min_count: with fewer rewards than this, the mean and deviation of the whole batch are used.
    """

    def __init__(self, buffer_size: int, min_count: int) -> None:
        self.buffer_size = buffer_size
        self.min_count = min_count
        self.stats: dict[Any, deque[Any]] = {}

    def update(self, prompts: Sequence[str], rewards: Sequence[float] | np.ndarray) -> np.ndarray:
        """Store the rewards of a batch, and compute its advantages.

        Args:
            prompts: the prompt of each sample.
            rewards: the reward of each sample, a float; integer rewards give integer advantages.

        Returns:
            Advantages (batch,).
        """
        texts, scores = np.array(prompts), np.array(rewards)
        advantages = np.empty_like(scores)
        for prompt in np.unique(texts):
            mine = texts == prompt
            known = self.stats.setdefault(prompt, deque(maxlen=self.buffer_size))
            known.extend(scores[mine])
            base = scores if len(known) < self.min_count else np.array(known)
            advantages[mine] = (scores[mine] - base.mean()) / (base.std() + _STD_FLOOR)
        return advantages

    def get_stats(self) -> dict[Any, dict[str, Any]]:
        """Return `mean`, `std` and `count` of the stored rewards of each prompt."""
        return {
            prompt: {"mean": np.mean(known), "std": np.std(known), "count": len(known)}
            for prompt, known in self.stats.items()
        }


def neftune_post_forward_hook(
    module: torch.nn.Module,
    input: object,  # noqa: A002 (TRL's)
    output: torch.Tensor,
) -> torch.Tensor:
    """Add uniform noise to embeddings in training; a forward hook.

    Jain et al., NEFTune (arXiv:2310.05914): noise of magnitude alpha / sqrt(length * width).

    Args:
        module: an embedding; `module.neftune_noise_alpha` is alpha.
        input: ignored.
        output: (batch, length, width).

    Returns:
        The same shape.
    """
    if not module.training:
        return output
    bound = float(module.neftune_noise_alpha) / math.sqrt(output.size(1) * output.size(2))  # type: ignore[arg-type]
    return output + torch.empty_like(output).uniform_(-bound, bound)


_ENDS_OF_MODELS = re.compile("lm_head|embed_tokens|wte|wpe")


def peft_module_casting_to_bf16(model: torch.nn.Module) -> None:
    """Cast adapters, and embeddings and heads in fp32, to bf16, and norms to fp32, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def wanted(name: str, module: torch.nn.Module) -> torch.dtype | None:
        if isinstance(module, BaseTunerLayer):
            return torch.bfloat16
        if "norm" in name or isinstance(module, torch.nn.LayerNorm):
            return torch.float32
        precision = getattr(getattr(module, "weight", None), "dtype", None)
        return torch.bfloat16 if precision == torch.float32 and _ENDS_OF_MODELS.search(name) else None

    for path, part in model.named_modules():
        precision = wanted(path, part)
        if precision is not None:
            part.to(precision)


def trl_sanitze_kwargs_for_tagging(
    model: object, tag_names: list[str], kwargs: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Add a trainer's tags to the arguments of `push_to_hub`.

    Args:
        model: the model; if its configuration shows that Unsloth has patched it, this also becomes a tag.
        tag_names: the tags of the trainer; found tags are appended.
        kwargs: the given arguments; `tags` is a list, a string, or missing.

    Returns:
        `kwargs`, with all tags in a list; None if it was None.
    """
    if (
        is_unsloth_available()
        and getattr(getattr(model, "config", None), "unsloth_version", None) is not None
    ):
        tag_names.append("unsloth")
    if kwargs is None:
        return None
    given = kwargs.setdefault("tags", [])
    if isinstance(given, list):
        given.extend(tag_names)
    elif isinstance(given, str):
        tag_names.append(given)
        kwargs["tags"] = tag_names
    return kwargs


def get_quantization_config(model_config: ModelConfig) -> BitsAndBytesConfig | None:
    """Make the quantization configuration of a `ModelConfig`; None if it requests no quantization."""
    if model_config.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=model_config.torch_dtype,
            bnb_4bit_quant_type=model_config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_config.use_bnb_nested_quant,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_config.load_in_8bit else None


def get_kbit_device_map() -> dict[str, Any] | None:
    """Return a device map for a quantized model on this process's device; None without an accelerator."""
    prefix = "xpu:" if is_xpu_available() else ""
    if not prefix and not torch.cuda.is_available():
        return None
    index = PartialState().local_process_index
    return {"": f"{prefix}{index}" if prefix else index}


def get_peft_config(model_config: ModelConfig) -> LoraConfig | None:
    """Make the LoRA configuration of a `ModelConfig`, for a causal model; None without `use_peft`."""
    if not model_config.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=model_config.lora_r,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=model_config.lora_target_modules,
        modules_to_save=model_config.lora_modules_to_save,
    )
