"""Precision as HF implements it: autocast around the model's forward only, outputs in fp32."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate.utils import convert_to_fp32
from lightning.pytorch.plugins.precision import Precision
from typing_extensions import override

from compat.engine.xla import reduced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import lightning.pytorch as pl
    from torch import nn

    from compat.upstream.values import Output


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""HF's name of a mixed precision → the type that autocast computes in."""


def autocast(
    device_type: str, mixed_precision: str, **options: Any
) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of a mixed precision; does nothing for full precision."""
    dtype = DTYPES.get(mixed_precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device_type=device_type, dtype=dtype, **options)


class ForwardPrecision(Protocol):
    """How a model's forward computes; two objects are equal if they compute alike."""

    def run(self, forward: Callable[..., Output], args: Any, kwargs: Any) -> Output:
        """Call a forward."""


@dataclass(frozen=True)
class AutocastPrecision:
    """Autocast, with outputs in fp32, as HF computes.

    Attributes:
        device_type: kind of the device.
        mixed_precision: "bf16" or "fp16".
        options: further options of `torch.autocast`.
    """

    device_type: str
    mixed_precision: str
    options: dict[str, Any]

    def run(self, forward: Callable[..., Output], args: Any, kwargs: Any) -> Output:
        """Call a forward under autocast."""
        with autocast(self.device_type, self.mixed_precision, **self.options):
            outputs = forward(*args, **kwargs)
        return convert_to_fp32(outputs)


class PreciseForward:
    """A model's forward in some precision; copies and pickles with its model.

    Args:
        model: the model.
        precision: how it computes.
    """

    def __init__(self, model: nn.Module, precision: ForwardPrecision) -> None:
        self.forward: Callable[..., Output] = model.forward
        self.precision = precision
        # Sets `__wrapped__`: HF finds the model's columns with `inspect.signature`, which follows it.
        functools.update_wrapper(self, self.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Output:
        """Call the model's own forward."""
        return self.precision.run(self.forward, args, kwargs)


def compute_in(model: nn.Module, precision: ForwardPrecision | None) -> None:
    """Set the precision that a model computes in, replacing the one that an earlier trainer has set.

    Args:
        model: the model; its `forward` is replaced on the instance.
        precision: how it computes; None for its own precision.
    """
    current = vars(model).get("forward")
    if isinstance(current, PreciseForward):
        if current.precision == precision:
            return
        del vars(model)["forward"]
        if getattr(current.forward, "__func__", None) is not type(model).forward:
            vars(model)["forward"] = current.forward
    if precision is not None:
        vars(model)["forward"] = PreciseForward(model, precision)


def set_autocast(model: nn.Module, device_type: str, mixed_precision: str, **options: object) -> None:
    """Set the mixed precision of `model`, replacing the one that an earlier trainer has set.

    Args:
        model: the model.
        device_type: kind of the device it runs on.
        mixed_precision: "no", "bf16" or "fp16".
        options: further options of `torch.autocast`.
    """
    is_mixed = mixed_precision in DTYPES
    compute_in(model, AutocastPrecision(device_type, mixed_precision, options) if is_mixed else None)


def _listened_to(module: pl.LightningModule) -> bool:
    trainer: Any = module.trainer
    return bool(trainer.callbacks or module.has_user_module)


@contextlib.contextmanager
def _noting_step(optimizer: Any) -> Iterator[list[bool]]:
    """Note each call of an optimizer's `step`."""
    calls: list[bool] = []
    step, own = optimizer.step, vars(optimizer).get("step")

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        return step(*args, **kwargs)

    optimizer.step = noted
    try:
        yield calls
    finally:
        del optimizer.step
        if own is not None:
            optimizer.step = own


class HFPrecision(Precision):
    """Runs the closure, clips and steps in HF's order; the model applies autocast itself.

    Lightning's mixed precision covers the whole training step with autocast, so that a loss computed outside
    the model would be in half precision; HF's covers the model's forward. Mirrors
    `accelerate.Accelerator.prepare_model` and `accelerate.optimizer.AcceleratedOptimizer.step`.

    Args:
        name: Lightning's name of the precision, for display.
        scaler: the gradient scaler, with fp16.

    Attributes:
        step_was_skipped: whether the scaler skipped the last optimizer step.
    """

    def __init__(self, name: str, scaler: Any | None) -> None:
        super().__init__()
        self.precision = name  # type: ignore[assignment]
        self.scaler = scaler
        self.step_was_skipped = False

    @override
    def train_step_context(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Return a null context: the model applies autocast itself."""
        return contextlib.nullcontext()

    @override
    def pre_backward(  # type: ignore[override]
        self, tensor: torch.Tensor, module: pl.LightningModule
    ) -> torch.Tensor:
        if self.scaler is not None:
            tensor = self.scaler.scale(tensor)
        # Only callbacks use the hooks around the backward.
        return super().pre_backward(tensor, module) if _listened_to(module) else tensor

    @override
    def post_backward(  # type: ignore[override]
        self, tensor: torch.Tensor, module: pl.LightningModule
    ) -> torch.Tensor:
        return super().post_backward(tensor, module) if _listened_to(module) else tensor.detach()

    @override
    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: pl.LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Step without passing the closure to the optimizer: not every optimizer that HF builds takes one.

        In manual optimization, the optimizers are the user's, and may call the closure several times.
        """
        if not model.automatic_optimization:
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        result = closure()
        self._after_closure(model, optimizer)
        self.step(optimizer, **kwargs)
        return result

    def step(self, optimizer: Any, **kwargs: Any) -> None:
        """Step an optimizer, unless gradients overflowed.

        Args:
            optimizer: of the run.
            kwargs: of its `step`.
        """
        if self.scaler is None:
            optimizer.step(**kwargs)
            return
        inner = getattr(optimizer, "optimizer", optimizer)
        with reduced(optimizer), _noting_step(inner) as calls:
            self.scaler.step(inner, **kwargs)
        self.scaler.update()
        # A fused optimizer is called even if gradients overflowed, and skips the step itself; accelerate
        # counts that as a step. No number is copied from the device.
        self.step_was_skipped = optimizer.step_was_skipped = not calls
