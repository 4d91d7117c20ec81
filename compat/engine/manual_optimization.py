"""A user's LightningModule that optimizes manually: its `training_step` runs backward and steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import _configure_optimizers
from lightning.pytorch.loops.optimization.manual import _ManualOptimization
from lightning.pytorch.strategies.ddp import _DDPForwardRedirection
from torch.optim import Optimizer
from typing_extensions import override

from compat.engine.user_module import UserModuleAdapter
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from compat.engine.host import TrainerHost
    from compat.engine.session import Session
    from compat.upstream.values import Batch, Output

OPTIMIZERS, SCHEDULERS = "optimizers", "schedulers"
"""The entries of `optimizer.pt` and `scheduler.pt` that hold a state for each optimizer and scheduler."""

NO_GROUPS: Mapping[str, Any] = {"state": {}, "param_groups": []}
"""The rest of `optimizer.pt`. torch refuses to load it into any single optimizer, as that of HF's Trainer."""


def is_manual(model: nn.Module | None) -> bool:
    """Whether a model is a user's LightningModule with `automatic_optimization = False`."""
    return isinstance(model, pl.LightningModule) and not model.automatic_optimization


class OptimizersContainer(Optimizer):
    """Stands for all optimizers of a module where HF has one; the module steps them.

    Args:
        optimizers: the optimizers, in the order of `configure_optimizers`.

    Attributes:
        steps: completed steps of all optimizers, as Lightning counts them; saved with the checkpoint.
    """

    def __init__(self, optimizers: list[Optimizer]) -> None:
        # The base constructor would create its own parameter groups; these are the optimizers'.
        self.optimizers = optimizers
        self.defaults: dict[str, Any] = {}
        self.steps = 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, Any]:  # type: ignore[override]
        """The state of each parameter; of one in several optimizers, that of the last."""
        return {key: value for optimizer in self.optimizers for key, value in optimizer.state.items()}

    @override
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Refuse to step: only the module knows which optimizer is due.

        Raises:
            RuntimeError: always.
        """
        msg = "`optimizer.step()`: the LightningModule optimizes manually. Step in its `training_step`."
        raise RuntimeError(msg)

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**NO_GROUPS, OPTIMIZERS: [optimizer.state_dict() for optimizer in self.optimizers]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of each optimizer.

        Raises:
            ValueError: they are the states of other optimizers.
        """
        for optimizer, state in _pairs(self.optimizers, state_dict, OPTIMIZERS):
            optimizer.load_state_dict(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizers})"


class SchedulersContainer:
    """Stands for all schedulers of a module where HF has one; the module steps them.

    Args:
        schedulers: the schedulers, in the order of `configure_optimizers`; may be empty.
        optimizer: the optimizers, whose learning rates are logged.
    """

    def __init__(self, schedulers: list[Any], optimizer: OptimizersContainer) -> None:
        self.schedulers, self.optimizer = schedulers, optimizer

    def get_last_lr(self) -> list[float]:
        """Return the current learning rate of each parameter group; HF logs the first."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, *_: object) -> None:
        """Refuse to step: only the module knows which scheduler is due.

        Raises:
            RuntimeError: always.
        """
        msg = "`lr_scheduler.step()`: the LightningModule optimizes manually. Step in its `training_step`."
        raise RuntimeError(msg)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each scheduler."""
        return {SCHEDULERS: [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of each scheduler.

        Raises:
            ValueError: they are the states of other schedulers.
        """
        for scheduler, state in _pairs(self.schedulers, state_dict, SCHEDULERS):
            scheduler.load_state_dict(state)


def _pairs(parts: list[Any], state: dict[str, Any], kind: str) -> Iterator[tuple[Any, Any]]:
    saved = state.get(kind)
    if saved is None:
        msg = f"the state is that of a single {kind[:-1]}, and the module has optimized automatically"
        raise ValueError(msg)
    if len(saved) != len(parts):
        msg = f"the state holds {len(saved)} {kind}, and `configure_optimizers` returns {len(parts)}"
        raise ValueError(msg)
    return zip(parts, saved, strict=True)


class ManualOptimization(_ManualOptimization):
    """Lightning's loop around a `training_step` that steps; counts the steps of all optimizers."""

    def __init__(self, trainer: pl.Trainer, session: Session) -> None:
        super().__init__(trainer)
        self._session = session

    def fast_forward(self, steps: int) -> None:
        """Count the completed optimizer steps of a resumed run as done."""
        total: Any = self.optim_step_progress.total
        total.ready = total.completed = steps

    @override
    def _on_after_step(self) -> None:
        super()._on_after_step()
        self._session.hf.optimizer.optimizer.steps = self.optim_step_progress.total.completed
        self._session.fire("on_optimizer_step")


class ManualModuleAdapter(UserModuleAdapter):
    """Runs the user's `training_step` and leaves backward, steps and zeroing of gradients to it.

    One batch counts as one of HF's update steps.
    """

    _redirect = _DDPForwardRedirection()

    def __init__(self, hf: TrainerHost, model: nn.Module) -> None:
        super().__init__(hf, model)
        self.automatic_optimization = False

    @override
    def step(self, name: str, model: nn.Module, batch: Batch) -> Output:
        output = super().step(name, model, batch)
        if name == "training_step":
            self.run.step_output = output
        return output

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Output:  # type: ignore[override]
        """Run HF's training step around the user's.

        Args:
            batch: the batch as HF's collator returned it.
            batch_idx: its index in the epoch.

        Returns:
            The output of the user's step: a scalar, a dict or None.
        """
        run = self.run
        run.step_output = None
        # The user's step may step a scheduler.
        run.learning_rate = run.hf._get_learning_rate()
        super().training_step(batch, batch_idx)
        output, run.step_output = run.step_output, None
        return output

    @override
    def add_up(self, hf: TrainerHost, loss: torch.Tensor) -> None:
        run = self.run
        if reported_loss(run.step_output) is None:
            return
        super().add_up(hf, loss)
        run.losses_since_log += 1
        run.has_losses = True

    @override
    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        self.call("backward", loss, *args, **kwargs)

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.run.fire("on_pre_optimizer_step")
        self.call("on_before_optimizer_step", optimizer)

    @override
    def count_update_step(self) -> None:
        self._count_batch()

    @override
    def zero_gradients(self) -> None:
        """Do nothing: the user's step zeroes gradients, and may accumulate them over batches."""

    @override
    def log_save_evaluate(self, run: Session) -> None:
        hf = run.hf
        steps = hf.state.global_step - hf._globalstep_last_logged
        if hf.control.should_log and 0 < run.losses_since_log < steps:
            # HF divides by all steps; the mean is that of the losses that were returned.
            hf._tr_loss *= steps / run.losses_since_log
        super().log_save_evaluate(run)
        if hf._globalstep_last_logged == hf.state.global_step:
            run.losses_since_log = 0

    @override
    def on_validation_start(self) -> None:
        if self.session is not None:
            # Lightning zeroes gradients before it validates within `fit`.
            self.call("on_validation_model_zero_grad")
        super().on_validation_start()

    @override
    def configure_optimizers(self) -> Any:
        """Have HF prepare its side, and return to Lightning what the user's module returned.

        Raises:
            ArgumentError: a subclass of the Trainer has created another optimizer.
        """
        super().configure_optimizers()
        container = getattr(self.run.hf.optimizer, "optimizer", None)
        if not isinstance(container, OptimizersContainer):
            kind, name = type(self.run.hf).__name__, type(self.model).__name__
            msg = (
                f"`{kind}.create_optimizer`: `{name}` optimizes manually, with its own optimizers. Leave "
                "the override out, and configure them in the module."
            )
            raise ArgumentError(msg)
        loop: Any = self.trainer.fit_loop.epoch_loop
        loop.manual_optimization.fast_forward(container.steps)
        return self.run.hf._user_module.configured

    @override
    def optimizer_and_scheduler(self) -> tuple[Any, Any, None]:
        """Return what stands for the user module's optimizers and schedulers.

        Raises:
            ArgumentError: it has no optimizer.
        """
        configured = self.call("configure_optimizers")
        optimizers, schedulers, _ = _configure_optimizers([] if configured is None else configured)
        if not optimizers:
            msg = (
                f"`model={type(self.model).__name__}`: `configure_optimizers` returns no optimizer. Return "
                "those that `training_step` steps."
            )
            raise ArgumentError(msg)
        self.hf._user_module.configured = configured
        container = OptimizersContainer(list(optimizers))
        own = [one["scheduler"] if isinstance(one, dict) else one for one in schedulers]
        return container, SchedulersContainer(own, container), None

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("lr_schedulers", [])
        super().on_save_checkpoint(checkpoint)
        checkpoint["lr_schedulers"] = states


def reported_loss(output: Output) -> torch.Tensor | None:
    """Return the loss that a manual `training_step` returned, to be logged; None if it returned none.

    Args:
        output: a scalar, a dict that may have `loss`, or something else.
    """
    loss = output.get("loss") if isinstance(output, dict) else output
    return loss.detach() if isinstance(loss, torch.Tensor) and loss.numel() == 1 else None
