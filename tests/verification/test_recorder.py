from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from compat.verification.job import Job
from compat.verification.mirror import Mirror
from compat.verification.recorder import Recording, StepRecorder

if TYPE_CHECKING:
    from pathlib import Path

MODEL = torch.nn.Linear(2, 1)


def recorded(
    folder: Path, steps: int, last: int, **arguments: str
) -> tuple[TrainerControl, list[dict[str, Any]]]:
    """Make so many steps of a run of eight, and return the control and the records."""
    recording = Recording(Job("hf", str(folder), str(folder), steps, 0), 0, Mirror(str(folder)))
    recorder = StepRecorder(recording, 1, SimpleNamespace(model=MODEL))
    args = SimpleNamespace(**{"save_strategy": "steps", "eval_strategy": "steps", **arguments})
    state, control = TrainerState(max_steps=8), TrainerControl()
    for step in range(1, last + 1):
        state.global_step = step
        recorder.losses += [torch.tensor(0.5), torch.tensor(0.25)]
        recorder.on_step_begin(args, state, control)
        # SetFit gives callbacks a model that is no module.
        recorder.on_step_end(args, state, control, model=object())
    recording.file.close()
    lines = (folder / "records-0.jsonl").read_text().splitlines()
    return control, [json.loads(line) for line in lines]


def test_a_step_has_its_losses_and_the_weights_of_the_trainers_model(tmp_path: Path) -> None:
    _, lines = recorded(tmp_path, steps=0, last=2)
    assert [line["kind"] for line in lines] == ["event", "event", "step"] * 2
    for number, line in enumerate(lines[2::3], start=1):
        assert (line["train"], line["step"], line["losses"]) == (1, number, [0.5, 0.25])
        assert line["weight_sum"] == pytest.approx(sum(p.double().sum().item() for p in MODEL.parameters()))
        assert line["memory"]["process"] > 0


@pytest.mark.parametrize(
    ("steps", "last", "arguments", "flags"),
    [
        (4, 3, {}, {"should_log"}),
        (4, 4, {}, {"should_log", "should_training_stop", "should_save", "should_evaluate"}),
        (4, 4, {"save_strategy": "no", "eval_strategy": "no"}, {"should_log", "should_training_stop"}),
        (0, 8, {}, {"should_log"}),
        (8, 8, {}, {"should_log"}),  # the run ends by itself
    ],
)
def test_training_ends_after_the_steps_that_were_asked_for(
    steps: int, last: int, arguments: dict[str, str], flags: set[str], tmp_path: Path
) -> None:
    control, _ = recorded(tmp_path, steps, last, **arguments)
    assert {name for name, value in vars(control).items() if name.startswith("should_") and value} == flags
