from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

from compat.callbacks import EVENTS
from compat.engine.module import TrainerModule
from tests.small import trainer

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

INHERITED = {"on_push_begin"}
"""Events that need what a test does not have: a Hub to push to."""


def test_the_table_names_every_event() -> None:
    events = {name for name in vars(transformers.TrainerCallback) if name.startswith("on_")}
    assert events <= {event.name for event in EVENTS}


def test_each_event_fires_inside_its_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack: list[str] = []
    seen: dict[str, set[str]] = {}

    def watch(name: str) -> None:
        original = getattr(TrainerModule, name)

        def watched(self: TrainerModule, *args: Any, **kwargs: Any) -> Any:
            stack.append(name)
            try:
                return original(self, *args, **kwargs)
            finally:
                stack.pop()

        monkeypatch.setattr(TrainerModule, name, watched)

    for hook in {event.hook for event in EVENTS if event.hook}:
        watch(hook)

    class Recorder(transformers.TrainerCallback):
        pass

    for event in EVENTS:

        def fired(self: Recorder, *args: Any, name: str = event.name, **kwargs: Any) -> None:
            seen.setdefault(name, set()).add(stack[-1] if stack else "")

        setattr(Recorder, event.name, fired)

    ours = trainer(
        tmp_path,
        callbacks=[Recorder()],
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    ours.train()
    ours.predict(ours.eval_dataset)
    for event in EVENTS:
        if event.name in seen:
            assert event.hook in seen[event.name], event.name
        else:
            assert event.name in INHERITED | {"on_pre_optimizer_step"}, event.name


def test_events_of_one_update_step_come_in_the_order_of_the_table(tmp_path: Path) -> None:
    order: list[str] = []

    class Recorder(transformers.TrainerCallback):
        def on_event(self, event: str) -> None:
            order.append(event)

    for event in EVENTS:
        setattr(Recorder, event.name, lambda self, *args, name=event.name, **kwargs: order.append(name))
    ours = trainer(
        tmp_path,
        callbacks=[Recorder()],
        max_steps=1,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        per_device_eval_batch_size=8,
    )
    ours.train()
    assert order == [
        "on_init_end",
        "on_train_begin",
        "on_epoch_begin",
        "on_step_begin",
        "on_substep_end",
        "on_pre_optimizer_step",
        "on_optimizer_step",
        "on_step_end",
        "on_log",
        "on_prediction_step",
        "on_log",
        "on_evaluate",
        "on_save",
        "on_epoch_end",
        "on_log",
        "on_train_end",
    ]
