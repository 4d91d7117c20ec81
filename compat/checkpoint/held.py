"""Values that a resumed run takes from its checkpoint although its arguments differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import TrainerState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import TrainingArguments

EVENTS = ("logging", "eval", "save")
"""HF takes these intervals from the checkpoint, in every release."""


def what_holds(
    args: TrainingArguments, state: TrainerState, batch_size: int, max_steps: int
) -> Iterator[str]:
    """State which of two differing values a resumed run uses; HF only logs both.

    Args:
        args: the arguments of this run.
        state: the state that the checkpoint holds.
        batch_size: the samples of a process in a micro-step.
        max_steps: the update steps of the run; intervals below 1 are fractions of it.

    Yields:
        A sentence for each difference.
    """
    asked = TrainerState()
    asked.compute_steps(args, max_steps)
    by_steps = [f"{event}_steps" for event in EVENTS if getattr(args, f"{event}_strategy") == "steps"]
    told = [
        _told(name, saved, "checkpoint", wanted, "arguments")
        for name in by_steps
        if (saved := getattr(state, name)) != (wanted := getattr(asked, name))
    ]
    saved, wanted = state.train_batch_size, args.train_batch_size
    if saved is not None and saved != wanted:
        sides = ((wanted, "arguments"), (saved, "checkpoint"))
        holds, other = sides if batch_size == wanted else sides[::-1]
        told.append(_told("per_device_train_batch_size", *holds, *other))
    if told:
        yield "; ".join(told)


def _told(name: str, value: object, where: str, other: object, elsewhere: str) -> str:
    return f"`{name}={value}` of the {where} holds, and not {other} of the {elsewhere}"
