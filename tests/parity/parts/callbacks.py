"""Callbacks that steer, disturb or interrupt a run, as users write them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import ExportableState


class MachineCrashError(Exception):
    """Stands for the crash of a machine."""


def at(event: str, step: int | None, act) -> TrainerCallback:
    """A callback whose class overrides one event, as a user's class would.

    Args:
        event: the method to override, `on_step_end` say.
        step: the update step at which to act; None acts each time.
        act: called as `act(args, state, control, **kwargs)`; what it returns is returned.
    """

    def method(self, args, state, control, **kwargs):
        if step is None or state.global_step == step:
            return act(args, state, control, **kwargs)
        return None

    return type(f"At_{event}", (TrainerCallback,), {event: method})()


def flags(event: str, step: int | None = None, **values: bool) -> TrainerCallback:
    """Set flags of the control at an event."""

    def act(args, state, control, **kwargs):
        for name, value in values.items():
            setattr(control, name, value)

    return at(event, step, act)


def new_control(event: str, step: int, **values: bool) -> TrainerCallback:
    """Return another control object, which the handler has to take for the old one."""
    return at(event, step, lambda args, state, control, **kwargs: TrainerControl(**values))


def crash(step: int, error: type[BaseException] = MachineCrashError) -> TrainerCallback:
    """Raise at the beginning of the step that follows `step` updates."""

    def act(args, state, control, **kwargs):
        msg = f"after {step} steps"
        raise error(msg)

    return at("on_step_begin", step, act)


def freeze(step: int) -> TrainerCallback:
    """Freeze the first layer in the middle of a run."""

    def act(args, state, control, model, **kwargs):
        next(model.children()).requires_grad_(False)

    return at("on_step_begin", step, act)


def halve_rate() -> TrainerCallback:
    """Change the optimizer's learning rate behind the scheduler's back."""

    def act(args, state, control, optimizer, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] *= 0.5

    return at("on_step_begin", None, act)


def other_length(step: int, max_steps: int) -> TrainerCallback:
    """Change the planned number of steps in the middle of a run."""

    def act(args, state, control, **kwargs):
        state.max_steps = max_steps

    return at("on_step_begin", step, act)


def other_arguments(step: int, **values) -> TrainerCallback:
    """Change training arguments in the middle of a run."""

    def act(args, state, control, **kwargs):
        for name, value in values.items():
            setattr(args, name, value)

    return at("on_step_end", step, act)


def thaw(step: int) -> TrainerCallback:
    """Unfreeze the first layer and give it to the optimizer as a group of its own."""

    def act(args, state, control, model, optimizer, **kwargs):
        layer = next(model.children()).requires_grad_(requires_grad=True)
        optimizer.add_param_group({"params": list(layer.parameters()), "lr": 0.1})

    return at("on_step_begin", step, act)


def disturb_gradients() -> TrainerCallback:
    """Shift the gradients after clipping: whoever clips later undoes it."""

    def act(args, state, control, model, **kwargs):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.add_(0.125)

    return at("on_pre_optimizer_step", None, act)


def weight_sum(notes: list[Any]) -> TrainerCallback:
    """Note the sum of the weights on both sides of each optimizer step."""

    def act(args, state, control, model, **kwargs):
        with torch.no_grad():
            notes.append(sum(p.double().sum().item() for p in model.parameters()))

    class Weigh(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            act(args, state, control, **kwargs)

        def on_optimizer_step(self, args, state, control, **kwargs):
            act(args, state, control, **kwargs)

    return Weigh()


class StepCounter(TrainerCallback, ExportableState):
    """A callback with a state of its own in the checkpoint."""

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.count = start

    def on_step_end(self, args, state, control, **kwargs):
        """Count, and stop once eight steps were seen over all runs."""
        self.count += 1
        if self.count >= 8:
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback."""
        return {"args": {"start": self.start}, "attributes": {"count": self.count}}


class AskTrainer(TrainerCallback):
    """Calls back into a trainer while one trains; `trainer` is set after construction."""

    def __init__(self, event: str, ask) -> None:
        self.trainer = None
        self.answers: list[Any] = []
        self.event = event
        self.ask = ask

    def on_step_end(self, args, state, control, **kwargs):
        """Ask in the middle of an epoch."""
        if self.event == "on_step_end" and state.global_step == 2:
            self.answers.append(self.ask(self.trainer))

    def on_epoch_end(self, args, state, control, **kwargs):
        """Ask between epochs."""
        if self.event == "on_epoch_end":
            self.answers.append(self.ask(self.trainer))
