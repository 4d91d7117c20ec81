"""PEFT's adapters in a checkpoint: which folder holds which adapter, and how each is loaded.

`save_pretrained` writes the adapter "default" into the checkpoint itself, and each other adapter into a
folder of its name. `transformers.Trainer` reads them as if there were only one adapter.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import logging

from compat.checkpoint.layout import ADAPTER_FILES, UNSAVED
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from torch import nn

WHOLE = ("model.safetensors", "pytorch_model.bin")
DEFAULT = "default"
PREFIX = "base_model.model."
"""The prefix that PEFT adds to the names of wrapped modules."""

ENCODERS = ("mlp_head", "lstm_head", "transform")
"""Parts of a prompt encoder of which only the output is saved (P-tuning, prefix projection)."""

logger = logging.get_logger("transformers.trainer")


def adapters_in(checkpoint: str) -> dict[str, str]:
    """Return the adapters of a checkpoint: name → the folder that holds its weights."""
    names = sorted(os.listdir(checkpoint)) if os.path.isdir(checkpoint) else []
    places = {DEFAULT: checkpoint} | {name: os.path.join(checkpoint, name) for name in names}
    return {name: folder for name, folder in places.items() if _has_weights(folder)}


def load_adapters(model: nn.Module, checkpoint: str, *, is_trained_on: bool) -> bool:
    """Load each adapter of a model from its own folder of a checkpoint.

    Weight types, active adapters and trainable parameters do not change. If training resumes, an adapter that
    the model lacks is added to it, frozen, as `transformers.Trainer` does.

    Args:
        model: the model, with or without PEFT adapters.
        checkpoint: a `checkpoint-N` folder.
        is_trained_on: whether training resumes from it; if not, or if an inactive adapter is loaded, the
            model is set to eval mode.

    Returns:
        Whether the checkpoint holds adapters, and the model takes them.

    Raises:
        CheckpointError: a trained adapter is missing, or does not fit the model's.
    """
    there = adapters_in(checkpoint)
    names = _adapters_of(model)
    if not there or not names:
        return False
    folders = _folders(model, names, there)
    if _is_peft(model) and is_trained_on:
        _add(model, {name: folder for name, folder in folders.items() if name not in names})
    active = _active(model)
    for name in names:
        if name in folders:
            _load(model, name, folders[name], is_trained_on and name in active)
    _load_unsaved(model, os.path.join(checkpoint, UNSAVED))
    return True


def save_unsaved(model: nn.Module, folder: str) -> None:
    """Write the weights and statistics that training changes and that the adapters' own files omit.

    PEFT saves the output of a prompt encoder but not the encoder, and neither unfrozen weights nor running
    statistics of the base model.

    Args:
        model: the model; without PEFT adapters, nothing is written.
        folder: the folder of the adapters.
    """
    if not _is_peft(model) or is_whole(model, folder):
        return
    from peft import get_peft_model_state_dict

    saved = {
        value.data_ptr()
        for name in _adapters_of(model)
        for value in get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).values()
    }
    statistics = dict(model.named_buffers())
    unsaved = {
        name: value.detach().contiguous()
        for name, value in model.state_dict(keep_vars=True).items()
        if (value.requires_grad or name in statistics) and value.data_ptr() not in saved
    }
    if unsaved:
        save_file(unsaved, os.path.join(folder, UNSAVED))


def _load_unsaved(model: nn.Module, file: str) -> None:
    if not os.path.isfile(file):
        if name := computed_prompt(model):
            logger.warning(
                f"The adapter {name!r} computes its prompts by an encoder, and the checkpoint holds the "
                "prompts without it: `transformers.Trainer` has saved it so, and goes on with another "
                "encoder. A checkpoint of compat's holds both."
            )
        return
    own = model.state_dict(keep_vars=True)
    for name, value in load_file(file).items():
        if name not in own or own[name].shape != value.shape:
            msg = f"{file}: the model has no {name} of shape {tuple(value.shape)}. Make it as it was saved."
            raise CheckpointError(msg)
        own[name].data.copy_(value)


def is_whole(model: nn.Module, checkpoint: str) -> bool:
    """Whether a checkpoint has all weights of a PEFT model, as is the case for a `PeftMixedModel`."""
    return _is_peft(model) and any(os.path.isfile(os.path.join(checkpoint, name)) for name in WHOLE)


def computed_prompt(model: nn.Module) -> str:
    """Return the adapter whose prompts an encoder computes; empty if there is none."""
    encoders = getattr(model, "prompt_encoder", {}) if _is_peft(model) else {}
    computed = (
        name
        for name, encoder in encoders.items()
        if any(getattr(encoder, part, None) is not None for part in ENCODERS)
    )
    return next(computed, "")


def _has_weights(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ADAPTER_FILES)


def _peft() -> ModuleType | None:
    """Return PEFT if it has been imported: a model with adapters comes from there."""
    return sys.modules.get("peft")


def _is_peft(model: nn.Module) -> bool:
    peft = _peft()
    return peft is not None and isinstance(model, (peft.PeftModel, peft.PeftMixedModel))


def _adapters_of(model: nn.Module) -> tuple[str, ...]:
    is_adapted = isinstance(model, PreTrainedModel) and getattr(model, "_hf_peft_config_loaded", False)
    return tuple(model.peft_config) if _is_peft(model) or is_adapted else ()  # type: ignore[arg-type]


def _active(model: nn.Module) -> list[str]:
    # PEFT has a property of that name, transformers a method.
    active: Any = model.active_adapters
    return list(active() if callable(active) else active)


def _folders(model: nn.Module, names: tuple[str, ...], there: dict[str, str]) -> dict[str, str]:
    """Map each adapter of a model to the folder that it is loaded from."""
    active = _active(model)
    if not _is_peft(model) or (DEFAULT not in names and set(there) == {DEFAULT}):
        # transformers writes only the active adapter; so does a run that had only one.
        folders = {active[0]: there[DEFAULT]} if DEFAULT in there else {}
    else:
        folders = there
    trained = {
        name
        for parameter, value in model.named_parameters()
        if value.requires_grad
        for name in names
        if name in parameter.split(".")
    }
    if missing := sorted((trained | set(active)) - set(folders)):
        msg = (
            f"the checkpoint holds the adapters {', '.join(sorted(there))}, and no weights of "
            f"{', '.join(missing)}. Give the model the adapters that were saved, or give another checkpoint."
        )
        raise CheckpointError(msg)
    return folders


def _add(model: PreTrainedModel, folders: dict[str, str]) -> None:
    with _same_gradients(model):
        for name, folder in folders.items():
            model.load_adapter(folder, name, torch_device="cpu", autocast_adapter_dtype=False)


@contextlib.contextmanager
def _same_gradients(model: nn.Module) -> Iterator[None]:
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    yield
    for name, value in model.named_parameters():
        # Older releases of PEFT make active adapters trainable, even those that a script has frozen.
        if value.requires_grad != (name in trained):
            value.requires_grad_(name in trained)


def _load(model: PreTrainedModel, name: str, folder: str, is_trainable: bool) -> None:
    try:
        if _is_peft(model):
            result = model.load_adapter(
                folder, name, is_trainable=is_trainable, torch_device="cpu", autocast_adapter_dtype=False
            )
        else:
            result = _load_into_pretrained(model, name, folder)
            if not is_trainable:
                model.eval()
    except (RuntimeError, KeyError) as error:
        msg = f"the weights in {folder} do not fit the adapter {name!r}: {error}. Make it as it was saved."
        raise CheckpointError(msg) from error
    missing = [key for key in result.missing_keys if name in key.split(".")]
    own = {key for key, _ in model.named_parameters() if name in key.split(".")}
    if own and own <= set(missing):
        few = ", ".join(sorted(result.unexpected_keys)[:3]) or "none"
        msg = (
            f"the weights in {folder} are not those of the adapter {name!r}, of which none is there. Those "
            f"that are there: {few}. Make it as it was saved."
        )
        raise CheckpointError(msg)
    if missing or result.unexpected_keys:
        logger.warning(
            f"The adapter {name!r} and its weights in {folder} differ: missing there are {missing}, unknown "
            f"to the model are {list(result.unexpected_keys)}."
        )


def _load_into_pretrained(model: nn.Module, name: str, folder: str) -> Any:
    """Load an adapter created by transformers' `model.add_adapter`; its own loader creates a new one."""
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(folder, device="cpu")
    own = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    return set_peft_model_state_dict(model, own, adapter_name=name)
