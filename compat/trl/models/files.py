"""Files of a model that lies in a folder or on the Hub, and how models of TRL 0.7's time were loaded."""

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
"""Where the weights of a wrapped model may lie, the preferred place first."""

DOWNLOAD = ("token", "revision", "cache_dir", "local_files_only", "subfolder")
"""Arguments of `from_pretrained` that also say which files of a repository are meant."""

_ABSENT = (EntryNotFoundError, LocalEntryNotFoundError, HFValidationError, RepositoryNotFoundError)
_INDEX = ".index.json"
_DRAWN_AS_A_WHOLE = frozenset({"longt5", "mt5", "switch_transformers", "t5", "umt5"})
_QUANTIZED = ("load_in_8bit", "load_in_4bit")
# transformers 5 has renamed the argument, and warns of the old name.
_DTYPE = "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"


def load_model(auto_class: Any, name: str, *args: object, **kwargs: object) -> PreTrainedModel:
    """Loads a model as `from_pretrained` did it in TRL 0.7's time.

    That is in float32 unless a `torch_dtype` says otherwise (transformers 5 would take the precision in which
    the weights lie), and with `load_in_8bit` and `load_in_4bit` as arguments of their own.

    Args:
        auto_class: class whose `from_pretrained` is called.
        name: folder, or name of a repository on the Hub.
        args: handed on.
        kwargs: handed on in the words of the installed transformers.

    Raises:
        ArgumentError: `load_in_8bit` or `load_in_4bit` stands beside a `quantization_config`.
        CheckpointError: the folder has weights that are cut short, or lacks a shard that its index names.
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
    """Refuses a folder whose weights are not whole.

    Raises:
        CheckpointError: a file is cut short, or a shard is missing.
    """
    wrong = problems(source, weights_only=True) if os.path.isdir(source) else []
    if wrong:
        msg = (
            f"`{source}`: {'; '.join(wrong)}. Nothing has been loaded. "
            "Save the model again, or complete the folder."
        )
        raise CheckpointError(msg)


def find(source: str, file: str, **download: Any) -> str | None:
    """Returns the path of one file of a model, fetched from the Hub where `source` is no folder.

    Args:
        source: folder or name of a repository.
        file: path of the file in it.
        download: which files of the repository are meant, see `DOWNLOAD`.

    Returns:
        None where there is no such file.
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
    """Returns the tensors of one file on the CPU; pickles may hold nothing but tensors.

    Raises:
        CheckpointError: the file is cut short, or a pickle that would run code.
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
    """Returns the saved tensors whose names mention one of `modules`.

    Of a folder each of `WEIGHTS` is looked through; of a repository only the first that is there, since the
    others would be the same weights once more.

    Raises:
        CheckpointError: a shard that the index names is missing, or a file is not whole.
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
    """Draws what transformers drew in TRL 0.7's time while it loaded a model whose embeddings are tied.

    Layers that share the embeddings' weights are not in the file. They were drawn before they were tied, so
    that a head or an adapter that is drawn afterwards, from a seed that was set before, needs these numbers
    to be gone.

    Args:
        model: the model that has been loaded.
        source: its folder or its name on the Hub.
        download: which files of the repository are meant, see `DOWNLOAD`.
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
    """Returns the names of weights in safetensors; pickles hold tied ones under all of their names."""
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
