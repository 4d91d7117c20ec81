"""Patches that others make: of transformers' Trainer, of accelerate, of what `transformers.trainer` looks up.

A patch acts as an override in a subclass would, or the run is refused; none is ignored. What a library has
written itself is known by where it was written, and so whenever and wherever a patch is made.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import os
from dataclasses import dataclass
from enum import Enum
from types import CodeType, ModuleType
from typing import Any

import accelerate
from accelerate.optimizer import AcceleratedOptimizer
from transformers import Trainer as HFTrainer  # HF's own, also after `compat.install()`
from transformers import trainer as hf_trainer

from compat.errors import ArgumentError


class Handling(Enum):
    """What becomes of a patch."""

    CALLED = "called, at the moment and with the arguments that HF's code calls it with"
    REFUSED = "refused: what it replaces is done by Lightning or by `compat`, which would not call it"


@dataclass(frozen=True)
class Target:
    """Something that others patch.

    Attributes:
        owner: the class or the module.
        name: its attribute.
        handling: what becomes of a patch.
        instead: what to do where it is refused.
    """

    owner: type[Any] | ModuleType
    name: str
    handling: Handling
    instead: str = ""

    @property
    def where(self) -> str:
        """The target, as a user writes it."""
        if isinstance(self.owner, ModuleType):
            return f"{self.owner.__name__}.{self.name}"
        return f"{self.owner.__module__.partition('.')[0]}.{self.owner.__name__}.{self.name}"


_LOOP = "Override `training_step`, `compute_loss` or `get_batch_samples` in a subclass, or use a callback."
_CHECKPOINT = "Override it in a subclass of `compat.Trainer`, whose `super()` leads to ours."
_WRAPPER = (
    "Give the Lightning Trainer a strategy or a plugin (`lightning={...}`), or wrap the model yourself."
)

REPLACED = {
    "_inner_training_loop": _LOOP,
    "_run_epoch": _LOOP,
    "evaluation_loop": "Override `prediction_step` or `evaluate` in a subclass of `compat.Trainer`.",
    "_save_checkpoint": _CHECKPOINT,
    "_save_optimizer_and_scheduler": _CHECKPOINT,
    "_load_optimizer_and_scheduler": _CHECKPOINT,
    "_save_scaler": _CHECKPOINT,
    "_load_scaler": _CHECKPOINT,
    "_rotate_checkpoints": _CHECKPOINT,
}
"""Methods of HF's Trainer that ours does not call → what to do."""

_REPLACED_OF_ACCELERATOR = ("prepare", "prepare_model", "prepare_optimizer", "prepare_scheduler")

LOOKED_UP = (
    *("denumpify_detensorize", "find_batch_size", "get_model_param_count", "EvalLoopContainer"),
    "rotate_checkpoints",
)
"""Functions and classes that HF's code looks up in `transformers.trainer`, and ours does, too."""

FILES = {
    "PREFIX_CHECKPOINT_DIR": "checkpoint",
    "OPTIMIZER_NAME": "optimizer.pt",
    "SCHEDULER_NAME": "scheduler.pt",
    "SCALER_NAME": "scaler.pt",
    "TRAINER_STATE_NAME": "trainer_state.json",
    "TRAINING_ARGS_NAME": "training_args.bin",
}
"""Names of files and folders in `transformers.trainer` → what they are; others are refused."""


def _methods_of(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if inspect.isfunction(value)]


TARGETS = (
    *(
        Target(
            HFTrainer,
            name,
            Handling.REFUSED if name in REPLACED else Handling.CALLED,
            REPLACED.get(name, ""),
        )
        for name in dict.fromkeys((*_methods_of(HFTrainer), *REPLACED))
    ),
    *(Target(accelerate.Accelerator, name, Handling.REFUSED, _WRAPPER) for name in _REPLACED_OF_ACCELERATOR),
    *(Target(accelerate.Accelerator, name, Handling.CALLED) for name in ("backward", "no_sync")),
    *(Target(AcceleratedOptimizer, name, Handling.REFUSED, _WRAPPER) for name in ("__init__", "step")),
    *(Target(hf_trainer, name, Handling.CALLED) for name in LOOKED_UP if hasattr(hf_trainer, name)),
    *(
        Target(hf_trainer, name, Handling.REFUSED, "Leave the names of checkpoints as they are.")
        for name in FILES
    ),
)
"""All that can be patched, and what becomes of it."""

_DECORATORS = frozenset({inspect.getfile(functools), inspect.getfile(contextlib)})
"""Files whose code stands around functions that a library decorates."""


@functools.cache
def is_upstream(function: object, package: str) -> bool:
    """Whether a function, and all that it wraps, was written in the files of a package.

    Args:
        function: a function or a class.
        package: the name of the package.
    """
    folder = os.path.join(os.path.dirname(inspect.getfile(importlib.import_module(package))), "")
    while function is not None:
        if isinstance(function, type):
            return function.__module__.partition(".")[0] == package
        code = getattr(function, "__code__", None)
        if code is None or not (code.co_filename.startswith(folder) or code.co_filename in _DECORATORS):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def is_patched(owner: type[Any] | ModuleType, name: str) -> bool:
    """Whether a library's own attribute has been replaced.

    Args:
        owner: the class or the module.
        name: its attribute.
    """
    # All targets are in their owner's own namespace. Asked several times in a micro-step.
    value = vars(owner).get(name)
    if value is _known_own.get((owner, name), _known_own):
        return False
    if isinstance(value, str):
        return value != FILES[name]
    module: str = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    is_own = getattr(value, "__name__", "") == name and is_upstream(value, module.partition(".")[0])
    if is_own:
        _known_own[owner, name] = value
    return not is_own


_known_own: dict[tuple[type[Any] | ModuleType, str], Any] = {}
"""Owner and name → the library's own attribute."""


def refuse_patches() -> None:
    """Refuse patches of what our engine does not call.

    Raises:
        ArgumentError: each of them, with where it was written and what to do.
    """
    found = [_refusal(target) for target in _refused() if is_patched(target.owner, target.name)]
    if found:
        raise ArgumentError("\n".join(found))


@functools.cache
def _refused() -> tuple[Target, ...]:
    refused = (target for target in TARGETS if target.handling is Handling.REFUSED)
    return tuple(target for target in refused if hasattr(target.owner, target.name))


def _refusal(target: Target) -> str:
    written = where_written(getattr(target.owner, target.name))
    by_order = (
        " Or import `compat`, and call `compat.install()`, before the library that patches it."
        if target.owner is HFTrainer
        else ""
    )
    why = "and this engine would not call it"
    return f"`{target.where}`: patched ({written}), {why}. {target.instead}{by_order}"


def where_written(value: Any) -> str:
    """The file and the line of a function; the value itself where it is none.

    Args:
        value: what somebody has put in the place of a library's own.
    """
    code = getattr(value, "__code__", getattr(inspect.unwrap(value), "__code__", None))
    return repr(value) if code is None else f"{code.co_filename}:{code.co_firstlineno}"


@functools.cache
def own_signature() -> inspect.Signature:
    """The signature of HF's own constructor, whatever stands in its place."""
    if not is_patched(HFTrainer, "__init__"):
        return inspect.signature(HFTrainer.__init__)
    tree = ast.parse(inspect.getsource(hf_trainer))
    (constructor,) = (
        method
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
    )
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own, *others = (argument.arg for argument in constructor.args.args)
    return inspect.Signature(
        [inspect.Parameter(own, kind), *(inspect.Parameter(name, kind, default=None) for name in others)]
    )


def is_own_training_step(code: CodeType) -> bool:
    """Whether code is that of HF's own `training_step`.

    Args:
        code: of a function, or of a frame.
    """
    return code.co_name == "training_step" and code.co_filename == hf_trainer.__file__


def show_source(ours: type, theirs: type) -> None:
    """Have `inspect.getsource` and `inspect.signature` give HF's methods where ours stand in their place.

    Libraries edit that source, execute it and patch the class with what comes of it.

    Args:
        ours: the class whose methods are shown as HF's.
        theirs: HF's class.
    """
    for name, method in vars(ours).items():
        original = vars(theirs).get(name)
        if inspect.isfunction(method) and inspect.isfunction(original) and name != "__init__":
            method.__wrapped__ = original  # type: ignore[attr-defined]
