"""State that optimizers keep outside of their `state_dict`, saved so that a resumed run continues with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

PER_PARAMETER = "optimizer_dict"
"""Attribute of HF's layerwise optimizers: parameter → the optimizer that steps it in the backward pass."""

SCHEDULERS = "scheduler_dict"
"""Closure variable of the hooks with which HF steps the schedules of layerwise optimizers: parameter →
schedule."""

OWN_ATTRIBUTES: dict[tuple[str, str], tuple[str, ...]] = {
    ("lomo_optim.adalomo", "AdaLomo"): ("step_num", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"),
    ("compat.engine.manual_optimization", "OptimizersContainer"): ("steps",),
}
"""Module and name of an optimizer's class → attributes in which it keeps its state: numbers, or tensors by
the name of their parameter."""

Held = dict[str, Any]
"""Names of parameters, and of the values kept for them, down to states as plain data."""


def held_state(optimizer: Optimizer, model: nn.Module) -> Held:
    """Return the states that `optimizer.state_dict()` omits or keys by objects of this process.

    Args:
        optimizer: the optimizer, or what stands for it.
        model: whose parameters it steps.

    Returns:
        The states by the names of the parameters; empty where there are none.
    """
    optimizer = _itself(optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        index: {key: _by_name(value, names) for key, value in group.items() if _is_by_parameter(value)}
        for index, group in enumerate(optimizer.param_groups)
    }
    kept = {
        "attributes": {name: getattr(optimizer, name) for name in _own_attributes(optimizer)},
        "groups": {index: found for index, found in groups.items() if found},
        "optimizers": {
            names[parameter]: one.state_dict() for parameter, one in per_parameter(optimizer).items()
        },
        "schedulers": {
            names[parameter]: one.state_dict() for parameter, one in _schedulers(optimizer).items()
        },
    }
    return {name: value for name, value in kept.items() if value}


def load_held_state(optimizer: Optimizer, model: nn.Module, held: Held) -> None:
    """Restore the result of `held_state`, after the optimizer has loaded its own state.

    Args:
        optimizer: the optimizer, or what stands for it.
        model: whose parameters it steps.
        held: the result of `held_state`.
    """
    optimizer = _itself(optimizer)
    parameters = dict(model.named_parameters())
    for index, found in held.get("groups", {}).items():
        for key, states in found.items():
            optimizer.param_groups[index][key] = {parameters[name]: state for name, state in states.items()}
    for name, value in held.get("attributes", {}).items():
        if isinstance(value, Mapping):
            for parameter, tensor in getattr(optimizer, name).items():
                tensor.copy_(value[parameter])
        else:
            setattr(optimizer, name, value)
    for what, owners in (("optimizers", per_parameter(optimizer)), ("schedulers", _schedulers(optimizer))):
        for name, state in held.get(what, {}).items():
            if (owner := owners.get(parameters[name])) is not None:
                owner.load_state_dict(state)


def lacking(optimizer: Optimizer) -> set[str]:
    """Return default options that the groups lack: the loaded state is that of another optimizer.

    Args:
        optimizer: the optimizer or its wrapper, after it has loaded a state.
    """
    optimizer = _itself(optimizer)
    return {name for group in optimizer.param_groups for name in optimizer.defaults if name not in group}


def _own_attributes(optimizer: Optimizer) -> tuple[str, ...]:
    kind = type(optimizer)
    return OWN_ATTRIBUTES.get((kind.__module__, kind.__qualname__), ())


def _is_by_parameter(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(key, torch.nn.Parameter) for key in value)


def _by_name(states: Mapping[Any, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    return {names[parameter]: state for parameter, state in states.items() if parameter in names}


def _itself(optimizer: Optimizer) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def per_parameter(optimizer: Optimizer) -> Mapping[Any, Any]:
    """The optimizers that HF steps in the backward pass, by parameter; empty where it steps one for all.

    Args:
        optimizer: the optimizer, or what stands for it.
    """
    return getattr(_itself(optimizer), PER_PARAMETER, None) or {}


def _schedulers(optimizer: Optimizer) -> dict[Any, Any]:
    found = {}
    for parameter in per_parameter(optimizer):
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            cells = zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True)
            schedulers: Any = next((cell.cell_contents for name, cell in cells if name == SCHEDULERS), {})
            if parameter in schedulers:
                found[parameter] = schedulers[parameter]
    return found
