"""A model without weights, built from its configuration: its names, and which of them are tied."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from compat.checkpoint.convert import lazy
from compat.checkpoint.convert.common import ADAPTER_CONFIG
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from compat.checkpoint.convert.common import Checkpoint


@dataclass(frozen=True)
class Skeleton:
    """The structure of a model, from its configuration.

    Attributes:
        names: the names of its state dict, in order.
        ties: groups of names of the same tensor, which is saved under the first one.
        groups: names and shapes of trained parameters in the order of HF's two groups of an optimizer, with
            and without weight decay.
    """

    names: tuple[str, ...]
    ties: tuple[tuple[str, ...], ...]
    groups: tuple[dict[str, torch.Size], ...]


def skeleton_of(checkpoint: Checkpoint) -> Skeleton | None:
    """Build the skeleton of a checkpoint's model, or of its adapters' base model.

    Returns:
        The skeleton; None if there is no configuration, or transformers does not have the model.
    """
    base = _model(checkpoint.config())
    if base is not None and checkpoint.has_adapters:
        base = _with_adapters(base, checkpoint.told(ADAPTER_CONFIG))
    return None if base is None else _skeleton(base)


def _with_adapters(base: nn.Module, told: dict[str, Any]) -> nn.Module | None:
    if not importlib.util.find_spec("peft"):
        return None
    import peft

    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[told["peft_type"]]
    # Trainable adapters, whose initialization needs no weights.
    settings = {
        "inference_mode": False,
        **({"init_lora_weights": True} if "init_lora_weights" in told else {}),
    }
    with torch.device("meta"):
        model: nn.Module = peft.get_peft_model(base, kind.from_peft_type(**{**told, **settings}))
    return model


def _model(told: dict[str, Any]) -> nn.Module | None:
    import transformers

    names = told.get("architectures") or [None]
    kind: Any = getattr(transformers, names[0] or "", None)
    # A configuration may contain anything.
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_model or told.get("model_type") not in transformers.CONFIG_MAPPING:
        return None
    config = transformers.CONFIG_MAPPING[told["model_type"]].from_dict(told)
    with torch.device("meta"):
        model: nn.Module = kind(config)
    return model


def _skeleton(model: nn.Module) -> Skeleton:
    from transformers import Trainer

    shared: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        shared.setdefault(id(tensor), []).append(name)
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    return Skeleton(
        names=tuple(model.state_dict()),
        ties=tuple(tuple(names) for names in shared.values() if len(names) > 1),
        groups=tuple(
            {name: shape for name, shape in trained.items() if (name in decayed) is is_decayed}
            for is_decayed in (True, False)
        ),
    )


def saved_once(weights: Mapping[str, torch.Tensor], skeleton: Skeleton | None) -> dict[str, torch.Tensor]:
    """Return the weights to save: for names of the same tensor, only the first one.

    Args:
        weights: name → tensor.
        skeleton: lists tied names; if None, names that share memory are tied.
    """
    ties = skeleton.ties if skeleton else _shared(weights)
    # A tie with a missing name does not affect the others.
    dropped = {name for names in ties for name in [name for name in names if name in weights][1:]}
    return {name: tensor for name, tensor in weights.items() if name not in dropped}


def as_in_memory(checkpoint: Checkpoint, skeleton: Skeleton | None, form: str) -> dict[str, torch.Tensor]:
    """Return the weights under all names of the model's state dict.

    Args:
        checkpoint: a checkpoint with weights as they are saved.
        skeleton: the skeleton of its model; if None, the weights are returned unchanged.
        form: the form that they are written to, for the error.

    Raises:
        CheckpointError: the model has names that the checkpoint lacks.
    """
    weights = dict(checkpoint.weights)
    if skeleton is None or checkpoint.has_adapters:
        return weights
    for names in skeleton.ties:
        if present := [weights[name] for name in names if name in weights]:
            weights.update({name: weights.get(name, present[0]) for name in names})
    if missing := [name for name in skeleton.names if name not in weights]:
        msg = (
            f"`{checkpoint.source}`: its weights are named otherwise than its model's: {len(missing)} are "
            f"missing, `{missing[0]}` for one, and the form `{form}` needs those. Load it with "
            "`from_pretrained`, and save it with `save_pretrained` of the installed transformers first."
        )
        raise CheckpointError(msg)
    return {name: weights[name] for name in (*skeleton.names, *weights)}


def _shared(weights: Mapping[str, torch.Tensor]) -> list[tuple[str, ...]]:
    places: dict[Any, list[str]] = {}
    for name, tensor in weights.items():
        if tensor.numel():
            places.setdefault(lazy.identity(tensor), []).append(name)
    return [tuple(names) for names in places.values() if len(names) > 1]
