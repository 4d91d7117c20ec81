"""Converts DeepSpeed settings of `accelerate launch` to `deepspeed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compat.translate.accelerate_env.override import (
    DEEPSPEED_FILE,
    PRECISION,
    USE_DEEPSPEED,
    LauncherOverride,
    is_true,
    named,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from transformers import TrainingArguments

    from compat.translate.accelerate_env.arguments import AsLaunched


def number(text: str) -> int | float | str:
    """Convert text to a number, or return it unchanged."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


DEEPSPEED: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", number),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping", number),
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("zero_optimization.stage", int),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("zero_optimization.offload_optimizer.device", str),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH": (
        "zero_optimization.offload_optimizer.nvme_path",
        str,
    ),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("zero_optimization.offload_param.device", str),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH": ("zero_optimization.offload_param.nvme_path", str),
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": (
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        is_true,
    ),
}
"""Variable → the entry of DeepSpeed's configuration that accelerate creates from it, and its parser."""


def deepspeed_config(variables: Mapping[str, str]) -> str | dict[str, Any]:
    """Return the configuration that accelerate builds from its variables: a file name, or the entries."""
    if DEEPSPEED_FILE in variables:
        return variables[DEEPSPEED_FILE]
    config: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 2},
    }
    for name, (place, read) in DEEPSPEED.items():
        if variables.get(name, "none") != "none":
            *path, last = place.split(".")
            inner = config
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = read(variables[name])
    return config


def deepspeed_overrides(
    args: TrainingArguments, variables: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[LauncherOverride]:
    """Return the launcher's settings of DeepSpeed."""
    details = named(variables, DEEPSPEED_FILE, *DEEPSPEED)
    if not is_true(variables.get(USE_DEEPSPEED)):
        return
    if not args.deepspeed:
        said = (*named(variables, USE_DEEPSPEED), *details)
        yield LauncherOverride("deepspeed", deepspeed_config(variables), said)
    elif details:
        # The switch alone may be HF's own: transformers 4 sets it if the arguments request DeepSpeed.
        yield LauncherOverride("deepspeed", deepspeed_config(variables), details, holds=False)


MATCHES = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "ACCELERATE_GRADIENT_CLIPPING": "max_grad_norm",
}
"""Entries that HF requires to be equal in DeepSpeed's configuration and in its arguments."""

IN_FILE_ALONE = frozenset(
    {
        *("gradient_accumulation_steps", "gradient_clipping", "zero_stage", "zero3_save_16bit_model"),
        *("offload_optimizer_device", "offload_param_device", "offload_param_nvme_path"),
        *("offload_optimizer_nvme_path", "mixed_precision"),
    }
)
"""Entries of accelerate's configuration that accelerate refuses together with a DeepSpeed file."""


def deepspeed_problems(args: AsLaunched, variables: Mapping[str, str]) -> Iterator[str]:
    """Yield the launcher's DeepSpeed settings that HF and accelerate refuse."""
    if args.fsdp and not args.is_from_launcher("fsdp"):
        yield (
            f"`fsdp={args.fsdp!r}`: `accelerate launch` asks for DeepSpeed ({USE_DEEPSPEED}=true), and both "
            "shard the model. Remove the argument, or launch without DeepSpeed."
        )
    beside = IN_FILE_ALONE & set(variables.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(","))
    if not args.is_from_launcher("deepspeed") or DEEPSPEED_FILE in variables:
        if beside:
            yield (
                f"`{', '.join(sorted(beside))}`: in accelerate's configuration beside one of DeepSpeed's "
                "own, and accelerate refuses both. Say it in DeepSpeed's alone."
            )
        return
    for name, field in MATCHES.items():
        asked = number(variables.get(name, "auto"))
        if asked != "auto" and asked != getattr(args, field):
            yield (
                f"`{field}={getattr(args, field)!r}`: `accelerate launch` asks for {name}={asked}, and HF "
                f"refuses that they differ. Give `{field}={asked}`."
            )
    for name in ("fp16", "bf16"):
        if args.is_from_launcher(name):
            yield (
                f"`{name}=False`: `accelerate launch` asks for {PRECISION}={name} with DeepSpeed, and HF "
                f"refuses that they differ. Give `{name}=True`."
            )
