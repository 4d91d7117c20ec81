"""Weights in the pickle format that preceded safetensors."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors.torch import load_file

PREFIXES = {"model": "pytorch_model", "adapter_model": "adapter_model"}
"""Name of the weights in safetensors → in pickles."""

SAFE, PICKLED, INDEX = ".safetensors", ".bin", ".index.json"


def without_shared_memory(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the same tensors, without shared memory."""
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in state_dict.items()
    }


def as_pickles(folder: str) -> None:
    """Convert the safetensors weights in `folder` to pickles, shard by shard.

    Args:
        folder: a folder written by `save_pretrained`. A file is removed only when its replacement is
            complete.
    """
    for file in sorted(os.listdir(folder)):
        successor = pickled_name(file)
        if successor is None:
            continue
        source, target = os.path.join(folder, file), os.path.join(folder, successor)
        if file.endswith(INDEX):
            _rewrite_index(source, target)
        else:
            torch.save(load_file(source), target)
        os.remove(source)


def pickled_name(file: str) -> str | None:
    """`model-00001-of-00002.safetensors` → `pytorch_model-00001-of-00002.bin`; None for other files."""
    stem, dot, rest = file.partition(SAFE)
    head, dash, shard = stem.partition("-")
    if not dot or head not in PREFIXES or rest not in ("", INDEX):
        return None
    return f"{PREFIXES[head]}{dash}{shard}{PICKLED}{rest}"


def _rewrite_index(source: str, target: str) -> None:
    with open(source, encoding="utf-8") as file:
        index = json.load(file)
    index["weight_map"] = {name: pickled_name(shard) for name, shard in index["weight_map"].items()}
    with open(target, "w", encoding="utf-8") as file:
        json.dump(index, file, indent=2, sort_keys=True)
