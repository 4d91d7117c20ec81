"""An HF Trainer without a loop, for a user's Lightning Trainer: losses, optimizers, loaders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.seed import isolate_rng

from compat.arguments.fields import shown
from compat.arguments.optimizers import OPTIMIZERS
from compat.engine.optimizer import ClosureFirst
from compat.errors import ArgumentError
from compat.trainer.trainer import Trainer
from compat.upstream.devices import kept_random_states

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from accelerate import Accelerator
    from torch import nn
    from transformers import TrainingArguments

    from compat.upstream.values import Output

NEUTRALIZED: dict[str, Any] = {
    "bf16": False,
    "bf16_full_eval": False,
    "disable_tqdm": True,
    "enable_jit_checkpoint": False,
    "eval_strategy": "no",
    "fp16": False,
    "fp16_full_eval": False,
    "lightning": None,
    "load_best_model_at_end": False,
    "output_dir": ".",
    "push_to_hub": False,
    "report_to": [],
    "save_strategy": "no",
    "torch_compile": False,
}
"""Arguments that Lightning or the module implements → the value that disables them in HF."""

REFUSED: dict[str, str] = {
    "auto_find_batch_size": "Use Lightning's `BatchSizeFinder`, or `compat.Trainer`.",
    "bf16_full_eval": "Give the Lightning Trainer `precision='bf16-true'`, or use `compat.Trainer`.",
    "debug": "Give the Lightning Trainer `detect_anomaly=True`, or use `compat.Trainer`.",
    "deepspeed": "Give the Lightning Trainer `strategy='deepspeed'`, or use `compat.Trainer`.",
    "fp16_full_eval": "Give the Lightning Trainer `precision='16-true'`, or use `compat.Trainer`.",
    "fsdp": "Give the Lightning Trainer `strategy='fsdp'`, or use `compat.Trainer`.",
    "parallelism_config": "Use `compat.Trainer`.",
    "push_to_hub": "Call `module.model.push_to_hub(...)` after `fit`, or use `compat.Trainer`.",
    "use_legacy_prediction_loop": "Leave it out: Lightning has the loop.",
}
"""Arguments that a user's Lightning Trainer does not support → the alternative."""


def check(args: TrainingArguments) -> None:
    """Refuse arguments that are not supported in a user's Lightning Trainer.

    Raises:
        ArgumentError: lists every such argument, with the alternative.
    """
    problems = list(_problems(args))
    if problems:
        raise ArgumentError("\n".join(problems))


def _problems(args: TrainingArguments) -> Iterator[str]:
    for name, way_out in REFUSED.items():
        if value := getattr(args, name, None):
            yield f"`{shown(name, value)}`: an HFModule cannot do it in your own Lightning Trainer. {way_out}"
    optim = getattr(args.optim, "value", args.optim)
    if optim in OPTIMIZERS and OPTIMIZERS[optim].steps_in_backward == "fused":
        yield (
            f"`optim={optim!r}`: it steps inside of the backward, which is Lightning's. "
            "Choose another one, or use `compat.Trainer`."
        )


class Headless:
    """Overrides that disable an HF Trainer's own actions: Lightning has placed the model and the batches."""

    accelerator: Accelerator
    optimizer: Any

    def _move_model_to_device(self, model: nn.Module, device: object) -> None:
        pass

    def _prepare_input(self, data: Output) -> Output:
        # HF's losses remove labels from their inputs, which callbacks receive afterwards.
        kind: type[Any] = type(data)
        return kind(dict(data)) if isinstance(data, Mapping) else data

    def create_optimizer(self, *args: object, **kwargs: object) -> Any:
        """Create the optimizer, so that it runs Lightning's closure before it steps."""
        self.optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if ClosureFirst.is_needed(self.optimizer):
            self.optimizer = ClosureFirst(self.optimizer, self.accelerator.gradient_state)
        return self.optimizer


def build_parts(
    model: nn.Module,
    args: TrainingArguments,
    kind: type[Trainer] | None = None,
    *,
    precision: str = "no",
    **parts: Any,
) -> Any:
    """Build an HF Trainer that provides its parts and never trains.

    Random states, the arguments and the folder of the run do not change.

    Args:
        model: the model.
        args: HF's arguments, which are copied.
        kind: the class of the trainer, `compat.Trainer` or a subclass.
        precision: the mixed precision that Lightning computes in: "no", "bf16" or "fp16".
        parts: further arguments of its constructor.

    Returns:
        The trainer, without callbacks.

    Raises:
        ArgumentError: the class has its own `training_step`, which would run the backward itself.
    """
    kind = kind or Trainer
    if kind.training_step is not Trainer.training_step:
        msg = (
            f"`trainer_class={kind.__name__}`: it overrides `training_step`, but steps are Lightning's here. "
            f"Override `compute_loss` instead, or train with `{kind.__name__}` itself."
        )
        raise ArgumentError(msg)
    own = copy.copy(args)
    for name, value in {**NEUTRALIZED, precision: True}.items():
        if hasattr(own, name):
            setattr(own, name, value)
    with isolate_rng(), kept_random_states():
        hf = type(kind.__name__, (Headless, kind), {})(model=model, args=own, **parts)
    own.output_dir = args.output_dir
    hf.callback_handler.callbacks.clear()
    hf.accelerator.device_placement = False
    # HF's own `evaluate` and `predict` would have set these.
    hf._gen_kwargs = {
        name: value
        for name in ("max_length", "num_beams")
        if (value := getattr(own, f"generation_{name}", None)) is not None
    }
    return hf


class Losses:
    """Replaces `accelerator.backward`, and keeps the loss for Lightning's backward."""

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None

    def __call__(self, loss: torch.Tensor, **kwargs: object) -> None:
        """Keep a loss, with its graph."""
        self._loss = loss

    def take(self) -> Any:
        """Return the loss that was kept last."""
        loss, self._loss = self._loss, None
        return loss
