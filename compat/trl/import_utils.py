"""Checks for optional packages, repeated at each call.

Mirrors `trl/import_utils.py` of TRL 0.7.11. A library that is blocked by `sys.modules[name] = None`
counts as missing; so does one that is removed while the program runs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

from packaging.version import Version


def _has(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _installed(distribution: str) -> Version:
    return Version(importlib.metadata.version(distribution))


def is_peft_available() -> bool:
    """Whether PEFT can be imported."""
    return _has("peft")


def is_unsloth_available() -> bool:
    """Whether Unsloth can be imported."""
    return _has("unsloth")


def is_accelerate_greater_20_0() -> bool:
    """Whether accelerate is 0.20.0 or newer."""
    return _installed("accelerate") >= Version("0.20.0")


def is_transformers_greater_than(version: str) -> bool:
    """Whether transformers is newer than `version`; compared as releases, so that 4.53 is above 4.9."""
    return _installed("transformers") > Version(version)


def is_torch_greater_2_0() -> bool:
    """Whether torch is 2.0 or newer."""
    return _installed("torch") >= Version("2.0")


def is_diffusers_available() -> bool:
    """Whether diffusers can be imported."""
    return _has("diffusers")


def is_bitsandbytes_available() -> bool:
    """Whether bitsandbytes is installed and a CUDA device is available."""
    import torch

    return _has("bitsandbytes") and torch.cuda.is_available()


def is_torchvision_available() -> bool:
    """Whether torchvision can be imported."""
    return _has("torchvision")


def is_rich_available() -> bool:
    """Whether rich can be imported."""
    return _has("rich")


def is_wandb_available() -> bool:
    """Whether Weights & Biases can be imported."""
    return _has("wandb")


def is_xpu_available() -> bool:
    """Whether torch can use an Intel GPU."""
    from accelerate.utils import is_xpu_available as found

    return bool(found())


def is_npu_available() -> bool:
    """Whether torch can use an Ascend NPU."""
    from accelerate.utils import is_npu_available as found

    return bool(found())
