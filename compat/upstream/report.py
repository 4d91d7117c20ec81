"""What a bug report says of a machine and its packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from compat.upstream.environment import configuration
from compat.upstream.required import REQUIRED

OPTIONAL = (
    *("bitsandbytes", "deepspeed", "evaluate", "flash-attn", "kernels", "liger-kernel", "peft"),
    *("ray", "sentence-transformers", "setfit", "tensorboard", "torch-xla", "torchao", "trl"),
)
"""Distributions that some arguments or scripts need."""

OF_LAUNCHERS = (
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS"),
    "CUDA_VISIBLE_DEVICES",
)
"""Variables that say how a job is started."""


def report() -> dict[str, dict[str, Any]]:
    """Return what is known of this machine and process, as plain data.

    Returns:
        Part → entry → value: text, a number, a bool, a list of text, or None for what is not installed.
    """
    return {
        "system": {
            "compat": _version("lightning-hf-compat"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processors": os.cpu_count(),
        },
        "required": {name: _version(name) for name in REQUIRED},
        "optional": {name: _version(name) for name in OPTIONAL},
        "devices": _devices(),
        "transformers": _line(),
        "launcher": {
            **{name: os.environ[name] for name in OF_LAUNCHERS if name in os.environ},
            **configuration(),
        },
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import torch

    from compat.upstream.devices import device_module
    from compat.upstream.environment import Facts

    kind = Facts.device_type_here()
    module = device_module(kind)
    found: dict[str, Any] = {"kind": kind, "threads": torch.get_num_threads()}
    if kind != "cpu" and hasattr(module, "device_count"):
        names = getattr(module, "get_device_name", None)
        found["number"] = module.device_count()
        found["names"] = [names(index) for index in range(module.device_count())] if names else []
        found["bf16"] = bool(getattr(module, "is_bf16_supported", bool)())
    return {**found, "torch built for CUDA": torch.version.cuda or "no"}


def _line() -> dict[str, Any]:
    """Which of our seams serve the installed release, and the features that were found in it."""
    from compat.upstream import features
    from compat.upstream.seams import TrainerSeams

    flags = {name: value for name, value in vars(features).items() if name.isupper()}
    return {
        "served by": TrainerSeams.__name__,
        "features": sorted(name for name, value in flags.items() if value is True),
        "installed over transformers": sys.modules["transformers"].Trainer.__module__.startswith("compat"),
    }
