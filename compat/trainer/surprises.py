"""Results of HF's Trainer that users do not expect: reproduced bit for bit, with one warning each.

`docs/differences.md` lists the same under "Reproduced although it surprises".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from compat.arguments.fields import shown
from compat.engine.optimizer_state import per_parameter
from compat.trainer.component import Component
from compat.upstream.models import counts_first_label, unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from compat.engine.host import TrainerHost
    from compat.upstream.values import Batch, NumItems

logger = logging.get_logger("transformers.trainer")


class Watched(torch.Tensor):
    """The number of items in a window, as a tensor that records whether it is used in a computation."""

    used: list[bool]

    @classmethod
    def of(cls, number: torch.Tensor) -> Watched:
        """Wrap a number; computations with it have bit-identical results."""
        watched = number.as_subclass(cls)
        watched.used = []
        return watched

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        watched = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            plain = [_plain(value) for value in args]
            result = func(*plain, **{name: _plain(value) for name, value in (kwargs or {}).items()})
        if func in _MOVES and watched and isinstance(result, torch.Tensor):
            moved = result.as_subclass(cls)
            moved.used = watched[0].used
            return moved
        if getattr(func, "__name__", "") != "__get__":
            for value in watched:
                value.used.append(True)
        return result


_MOVES = (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda, torch.Tensor.clone, torch.Tensor.detach)
"""Operations that wrappers apply to an input without computing with it."""


def _plain(value: object) -> object:
    return value.as_subclass(torch.Tensor) if isinstance(value, Watched) else value


@dataclass
class FirstStep:
    """The first micro-batch of a run, trained on.

    Attributes:
        hf: the HF Trainer.
        inputs: the batch.
        num_items: the number of items of its window; watched if it is a tensor.
        count: micro-batches of the window.
    """

    hf: TrainerHost
    inputs: Batch
    num_items: NumItems
    count: int


IGNORED = -100
"""The label of a token that is not predicted."""

OWN_DIVISORS = frozenset({"gradient_accumulation_steps", "current_gradient_accumulation_steps"})
"""Attributes by which a custom loss may have been divided for accumulation."""


def undivided_mean(first: FirstStep) -> str:
    """Report a loss that is not divided by the number of batches of its window.

    HF leaves the division to the code that receives `num_items_in_batch`: a model that takes keyword
    arguments, an overridden `compute_loss`, or `compute_loss_func`. Where they return the mean of their
    batch, losses and gradients are as many times too large as the window has batches, and, with
    `average_tokens_across_devices`, as there are processes.
    """
    hf = first.hf
    is_watched = isinstance(first.num_items, Watched)
    is_left_to_others = hf.model_accepts_loss_kwargs or hf.compute_loss_func is not None
    is_decided = getattr(hf, "loss_is_scaled_for_ga", None) is not None
    if not is_watched or first.num_items.used or not is_left_to_others or is_decided:
        return ""
    losses = [type(hf).compute_loss, *filter(None, (hf.compute_loss_func,))]
    if any(OWN_DIVISORS & _names_in(loss) for loss in losses):
        return ""
    times = first.count * _processes_that_multiply(hf)
    if times == 1:
        return ""
    whose = "`compute_loss_func`" if hf.compute_loss_func is not None else _whose_loss(hf)
    turn_off = "Set `trainer.model_accepts_loss_kwargs = False` ahead of training, or divide"
    way_out = f"{turn_off if hf.compute_loss_func is None else 'Divide'} the sum of its losses by"
    processes = f" on each of {hf.args.world_size} processes" if hf.args.world_size > 1 else ""
    return (
        f"`{shown('gradient_accumulation_steps', hf.args.gradient_accumulation_steps)}`: {whose} returns the "
        f"mean of its batch, and is asked for its share of {first.count} batches{processes}: losses and "
        f"gradients are {times} times too large, as under `transformers.Trainer`. {way_out} "
        "`num_items_in_batch`."
    )


def _names_in(function: object) -> frozenset[str]:
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return frozenset(() if code is None else code.co_names)


def _processes_that_multiply(hf: TrainerHost) -> int:
    multiplies = hf.args.average_tokens_across_devices and _whose_loss(hf) != _own_loss(hf)
    return int(hf.args.world_size) if multiplies else 1


def _own_loss(hf: TrainerHost) -> str:
    return f"`{type(hf).__name__}.compute_loss`"


def _whose_loss(hf: TrainerHost) -> str:
    method = type(hf).compute_loss
    is_own = method.__module__.partition(".")[0] not in ("compat", "transformers")
    is_own = is_own and "compute_loss" not in _names_in(method)  # then it is HF's, through `super()`
    return _own_loss(hf) if is_own else f"`{type(unwrapped(hf.model)).__name__}`"


def first_label_counted(first: FirstStep) -> str:
    """Report a causal model whose loss omits the first label of each row, which HF counts nevertheless."""
    hf, inputs = first.hf, first.inputs
    labels = inputs.get("labels") if hasattr(inputs, "get") else None
    is_idle = isinstance(first.num_items, Watched) and not first.num_items.used
    is_models = hf.compute_loss_func is None and _whose_loss(hf) != _own_loss(hf)
    if is_idle or not is_models or not counts_first_label(hf):
        return ""
    if not isinstance(labels, torch.Tensor) or labels.dim() == 1:
        return ""
    # Copied as they are: on XLA, a comparison on the device would be a program to compile.
    if bool((labels.cpu()[:, 0] == IGNORED).all()):
        return ""
    return (
        f"`model={type(unwrapped(hf.model)).__name__}`: it predicts no first label of a row, and "
        "`transformers.Trainer` counts each among those that the loss is divided by: `loss` and `eval_loss` "
        "are lower than the model's own, and `eval_loss` depends on `per_device_eval_batch_size` and on the "
        f"number of processes. Have the collator set the first label of each row to {IGNORED}."
    )


def unscheduled_layers(first: FirstStep) -> str:
    """Report layerwise optimizers, whose schedule acts only on HF's placeholder optimizer."""
    hf = first.hf
    kind = getattr(hf.args.lr_scheduler_type, "value", hf.args.lr_scheduler_type)
    if not per_parameter(hf.optimizer) or kind == "constant" or hasattr(hf.lr_scheduler, "default_lr"):
        return ""
    optim = shown("optim", getattr(hf.args.optim, "value", hf.args.optim))
    return (
        f"`{optim}`: the schedule {kind!r} acts on a "
        f"stand-in, and the layers are stepped with `{shown('learning_rate', hf.args.learning_rate)}` all "
        "along, as under `transformers.Trainer`; what is logged as `learning_rate` is the stand-in's. Give "
        "`lr_scheduler_type='constant'` to have the log tell the rate."
    )


def updates_in_backward(first: FirstStep) -> str:
    """Report LOMO's optimizers, whose gradients are freed before they could be accumulated or clipped."""
    args = first.hf.args
    if not first.hf.accelerator.has_lomo_optimizer:
        return ""
    without_effect = {"max_grad_norm": (None, 0), "gradient_accumulation_steps": (1,)}
    idle = [
        shown(name, getattr(args, name))
        for name, values in without_effect.items()
        if getattr(args, name) not in values
    ]
    if not idle:
        return ""
    optim = shown("optim", getattr(args.optim, "value", args.optim))
    return (
        f"`{optim}`: weights change in the backward pass of each batch, so that `{'` and `'.join(idle)}` "
        "neither clips nor adds up gradients, as under `transformers.Trainer`; `grad_norm` is logged as 0. "
        "Give `max_grad_norm=0`, and larger batches in place of accumulation."
    )


SURPRISES: tuple[Callable[[FirstStep], str], ...] = (
    undivided_mean,
    first_label_counted,
    unscheduled_layers,
    updates_in_backward,
)
"""Checks of the first step of a run; each returns a message, or an empty string."""

OF_EVALUATION: tuple[Callable[[FirstStep], str], ...] = (first_label_counted,)
"""Checks of the first step of an evaluation."""


class Surprises(Component):
    """Logs each of them once for a trainer."""

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self._said: set[Any] = set()

    def watch(self, num_items: NumItems) -> NumItems:
        """Wrap the number of items of the first window, where this has no visible effect."""
        hf = self.hf
        is_compiled = getattr(hf.args, "torch_compile", False) or any(
            isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod")
            for module in (hf.model, unwrapped(hf.model))
        )
        is_plain = type(num_items) is torch.Tensor and not is_compiled
        return Watched.of(num_items) if is_plain else num_items

    def tell(self, inputs: Batch, num_items: NumItems, count: int) -> None:
        """Check the first step of a run.

        Args:
            inputs: its batch.
            num_items: the result of `watch`.
            count: micro-batches of its window.
        """
        self._tell(SURPRISES, FirstStep(self.hf, inputs, num_items, count))

    def tell_of_evaluation(self, inputs: Batch) -> None:
        """Check the first step of an evaluation."""
        self._tell(OF_EVALUATION, FirstStep(self.hf, inputs, None, 1))

    def _tell(self, surprises: Sequence[Callable[[FirstStep], str]], first: FirstStep) -> None:
        for surprise in surprises:
            if surprise in self._said or not (sentence := surprise(first)):
                continue
            self._said.add(surprise)
            if first.hf.is_world_process_zero():
                logger.warning(sentence)
