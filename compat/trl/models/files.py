"""Files of a model in a folder or on the Hub, and loading as at the time of TRL 0.7."""

from __future__ import annotations

import json
import os
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, PretrainedConfig

from compat.checkpoint.verify import problems
from compat.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Possible weight files of a wrapped model, in the order of preference."""

DOWNLOAD = ("token", "revision", "cache_dir", "local_files_only", "subfolder")
"""Arguments of `from_pretrained` that also select the files of a repository."""

_ABSENT = (EntryNotFoundError, LocalEntryNotFoundError, HFValidationError, RepositoryNotFoundError)
_INDEX = ".index.json"
_DRAWN_AS_A_WHOLE = frozenset({"longt5", "mt5", "switch_transformers", "t5", "umt5"})
_QUANTIZED = ("load_in_8bit", "load_in_4bit")
# transformers 5 has renamed the argument, and warns about the old name.
_DTYPE = "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"


def load_model(auto_class: Any, name: str, *args: object, **kwargs: object) -> PreTrainedModel:
    """Load a model as `from_pretrained` did at the time of TRL 0.7.

    Weights are loaded in float32 unless `torch_dtype` is given; transformers 5 would keep the precision of
    the file. `load_in_8bit` and `load_in_4bit` are separate arguments.

    Args:
        auto_class: the class whose `from_pretrained` is called.
        name: a folder, or the name of a repository on the Hub.
        args: passed on.
        kwargs: passed on under the names of the installed transformers release.

    Raises:
        ArgumentError: `load_in_8bit` or `load_in_4bit` is given together with a `quantization_config`.
        CheckpointError: the folder has truncated weights, or lacks a shard that its index names.
    """
    bits = {key: kwargs.pop(key) for key in _QUANTIZED if key in kwargs}
    asked = {key: value for key, value in bits.items() if value}
    if asked and kwargs.get("quantization_config") is not None:
        given = ", ".join(f"`{key}={value}`" for key, value in asked.items())
        msg = f"{given} stands beside a `quantization_config`, which says the same. Leave one of them out."
        raise ArgumentError(msg)
    if asked:
        kwargs["quantization_config"] = BitsAndBytesConfig(**asked)
    if "torch_dtype" in kwargs:
        kwargs.setdefault(_DTYPE, kwargs.pop("torch_dtype"))
    if kwargs.get("quantization_config") is None and kwargs.get(_DTYPE) is None:
        kwargs[_DTYPE] = torch.get_default_dtype()
    refuse_half(name)
    return auto_class.from_pretrained(name, *args, **kwargs)


def refuse_half(source: str) -> None:
    """Refuse a folder with incomplete weights.

    Raises:
        CheckpointError: a file is truncated, or a shard is missing.
    """
    wrong = problems(source, weights_only=True) if os.path.isdir(source) else []
    if wrong:
        msg = (
            f"`{source}`: {'; '.join(wrong)}. Nothing has been loaded. "
            "Save the model again, or complete the folder."
        )
        raise CheckpointError(msg)


def find(source: str, file: str, **download: Any) -> str | None:
    """Return the path of a model's file; download it from the Hub if `source` is not a folder.

    Args:
        source: a folder, or the name of a repository.
        file: the path of the file in it.
        download: options that select the files of the repository; see `DOWNLOAD`.

    Returns:
        The path; None if there is no such file.
    """
    if os.path.isdir(source):
        path = os.path.join(source, download.get("subfolder") or "", file)
        return path if os.path.isfile(path) else None
    try:
        path = huggingface_hub.hf_hub_download(source, file, **download)
    except _ABSENT:
        return None
    return str(path)


def read(path: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a file to the CPU; pickles may contain only tensors.

    Raises:
        CheckpointError: the file is truncated, or is a pickle that would run code.
    """
    try:
        is_safe = path.endswith(".safetensors")
        tensors: dict[str, torch.Tensor] = (
            load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        msg = f"`{path}` cannot be read as weights ({error}). Save the model again, or fetch it anew."
        raise CheckpointError(msg) from error
    return tensors


def read_modules(source: str, modules: Iterable[str], **download: object) -> dict[str, torch.Tensor]:
    """Return the saved tensors whose names contain one of `modules`.

    In a folder, all existing files of `WEIGHTS` are searched; in a repository only the first one, since the
    others would hold the same weights.

    Raises:
        CheckpointError: a shard that the index names is missing, or a file is incomplete.
    """
    found: dict[str, torch.Tensor] = {}
    for name in WEIGHTS:
        path = find(source, name, **download)
        if path is None:
            continue
        found = _read_from(source, path, tuple(modules), download)
        if found or not os.path.isdir(source):
            break
    return found


def draw_as_then(model: PreTrainedModel, source: str, **download: object) -> None:
    """Draw the random numbers that loading a model with tied embeddings drew at the time of TRL 0.7.

    Layers that share the embeddings' weights are not in the file. They were initialized before they were
    tied. A head or an adapter that is initialized afterwards, from a seed that was set before, gets the same
    weights only if these numbers have been drawn.

    Args:
        model: the loaded model.
        source: its folder or its name on the Hub.
        download: options that select the files of the repository; see `DOWNLOAD`.
    """
    prefix = f"{model.base_model_prefix}."
    saved = {name.removeprefix(prefix) for name in _names(source, download)}
    shared = model.get_input_embeddings().weight
    tied = {
        f"{name}.weight".removeprefix(prefix)
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is shared
    }
    if not saved or not tied - saved:
        return
    for _ in range(1 if model.config.model_type in _DRAWN_AS_A_WHOLE else len(tied - saved)):
        torch.empty_like(shared.detach(), device="cpu").normal_()


def _names(source: str, download: dict[str, Any]) -> list[str]:
    """Return the names of weights in safetensors; pickles hold tied weights under all of their names."""
    single, index, *_ = WEIGHTS
    path = find(source, single, **download)
    if path is not None:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    path = find(source, index, **download)
    if path is None:
        return []
    with open(path, encoding="utf-8") as listed:
        return list(json.load(listed)["weight_map"])


def _read_from(
    source: str, path: str, modules: tuple[str, ...], download: dict[str, Any]
) -> dict[str, torch.Tensor]:
    if not path.endswith(_INDEX):
        return _mentioning(modules, read(path))
    with open(path, encoding="utf-8") as file:
        shards = _mentioning(modules, json.load(file)["weight_map"]).values()
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(set(shards)):
        place = find(source, shard, **download)
        if place is None:
            msg = (
                f"`{source}`: its index names {shard!r}, which is missing. "
                "Save the model again, or fetch that file."
            )
            raise CheckpointError(msg)
        found |= _mentioning(modules, read(place))
    return found


def _mentioning(modules: tuple[str, ...], named: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if any(module in name for module in modules)}
