"""A callback that writes down every event in order, with what could be seen at that moment."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from tests.parity.plain import digest, plain

EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))
FLAGS = tuple(f"should_{what}" for what in ("training_stop", "epoch_stop", "save", "evaluate", "log"))
WITH_GRADIENTS = ("on_pre_optimizer_step", "on_optimizer_step", "on_substep_end", "on_step_end")
"""Events whose place between backward, clipping, step and zeroing the gradients show."""


class EventRecorder(TrainerCallback):
    """Records each event; has to be the last callback of a trainer to see all flags."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def note(self, event: str, state: Any, control: Any, given: dict[str, Any]) -> None:
        """Write down one event.

        Args:
            event: its name.
            state: the trainer's state.
            control: the flags.
            given: the keyword arguments of the event.
        """
        model, optimizer = given.get("model"), given.get("optimizer")
        entry = {
            "event": event,
            "step": state.global_step,
            "epoch": state.epoch,
            "flags": [name for name in FLAGS if getattr(control, name)],
            "training": getattr(model, "training", None),
            "given": sorted(name for name, value in given.items() if value is not None),
            "rates": [group["lr"] for group in optimizer.param_groups] if optimizer else None,
        }
        if event in WITH_GRADIENTS:
            entry["gradients"] = [digest(p.grad) for p in model.parameters()]
        for name in ("logs", "metrics"):
            if name in given:
                entry[name] = given[name]
        self.events.append(plain(entry))


def _method(event: str):
    def method(self, args, state, control, **kwargs):
        self.note(event, state, control, kwargs)

    return method


for _event in EVENTS:
    setattr(EventRecorder, _event, _method(_event))
