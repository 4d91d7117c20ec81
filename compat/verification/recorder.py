"""Records a run in its own process: each event, loss and weight sum as they come, all states at the end.

Nothing here draws random numbers, and both Trainers are recorded in the same way. The records are lines of
JSON, written after each step, so that those of a run that fails are there up to its failure.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from compat.arguments.machine import XLA
from compat.upstream.devices import ask, devices_in_use
from compat.upstream.environment import Facts
from compat.verification.digests import files, generators, leaves, weight_sum
from compat.verification.isolation import Isolation
from compat.verification.job import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from compat.verification.job import Job
    from compat.verification.mirror import Mirror

EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))
FLAGS = tuple(f"should_{what}" for what in ("training_stop", "epoch_stop", "save", "evaluate", "log"))
STATE = (
    "epoch",
    "global_step",
    "max_steps",
    "num_train_epochs",
    "num_input_tokens_seen",
    "total_flos",
    "best_metric",
    "best_global_step",
    "best_model_checkpoint",
)
"""Attributes of `TrainerState` that are recorded at the end of training."""

INTERRUPTS = ("on_epoch_begin", "on_evaluate", "on_predict", "on_save")
"""Events after which the time of a step is measured anew: a step's time has no evaluation or save in it."""


class StepRecorder(TrainerCallback):
    """Records one call of `train`, and ends it after so many steps.

    Args:
        recording: where to write.
        number: of the call, from 1.
        trainer: whose it is. SetFit gives another model to callbacks.
    """

    def __init__(self, recording: Recording, number: int, trainer: Trainer) -> None:
        self.recording = recording
        self.number = number
        self.trainer = trainer
        self.losses: list[torch.Tensor] = []
        self.start: int | None = None
        self.mark = 0.0

    def note(self, event: str, state: TrainerState, control: TrainerControl) -> None:
        """Record an event."""
        flags = [name for name in FLAGS if getattr(control, name)]
        self.recording.write(
            kind="event",
            train=self.number,
            step=state.global_step,
            event=event,
            epoch=state.epoch,
            flags=flags,
        )
        if event in INTERRUPTS:
            self.mark = time.perf_counter()

    def end_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Record a step, have it logged, and end training after the last one that was asked for."""
        losses = [leaves(loss.item())[""] for loss in self.losses]
        self.losses.clear()
        _synchronize()
        seconds = time.perf_counter() - self.mark
        self.recording.write(
            kind="step",
            train=self.number,
            step=state.global_step,
            losses=losses,
            weight_sum=weight_sum(self.trainer.model),
            seconds=seconds,
            memory=_peak_memory(),
        )
        self.recording.flush()
        control.should_log = True
        if self.start is None:
            self.start = state.global_step - 1
        steps = self.recording.job.steps
        if steps and state.global_step - self.start >= steps and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"
            control.should_evaluate = args.eval_strategy != "no"
        self.mark = time.perf_counter()


def _event(name: str) -> Callable[..., None]:
    def method(
        self: StepRecorder,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: object,
    ) -> None:
        self.note(name, state, control)
        if name == "on_step_end":
            self.end_step(args, state, control)

    return method


for _name in EVENTS:
    setattr(StepRecorder, _name, _event(_name))


def _synchronize() -> None:
    if (kind := devices_in_use()) is not None:
        ask(kind, "synchronize")


def _peak_memory() -> dict[str, int]:
    """Return the peaks of this process so far, in bytes: of torch on the device, and of the process."""
    peaks = {}
    kind = devices_in_use()
    if kind is not None and (peak := ask(kind, "max_memory_allocated")) is not None:
        peaks["gpu"] = peak
    try:
        import resource
    except ImportError:  # Windows
        return peaks
    unit = 1 if sys.platform == "darwin" else 1024
    return {**peaks, "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


class Recording:
    """The records of a process.

    Args:
        job: the run.
        rank: the process, from 0.
        mirror: the tree in which the run works.
    """

    def __init__(self, job: Job, rank: int, mirror: Mirror) -> None:
        self.job = job
        self.rank = rank
        self.mirror = mirror
        self.home = os.getcwd()
        self.file = open(job.records(rank), "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process)
        self.trainings = 0
        self.passes = 0
        self.recorders: list[StepRecorder] = []

    def write(self, **line: Any) -> None:
        """Add a line."""
        self.file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Make all lines so far readable for others."""
        self.file.flush()

    def attach(self) -> None:
        """Patch the engine's Trainer in this process, so that all trainers are recorded and isolated."""
        isolation = Isolation(self.mirror)
        isolation.patch_arguments()
        kind = importlib.import_module(ENGINES[self.job.engine]).Trainer
        for name, wrap in (
            ("train", functools.partial(self._training, isolation)),
            ("training_step", self._step),
            ("predict", functools.partial(self._passing, "predict")),
            ("evaluate", functools.partial(self._passing, "evaluate")),
            ("save_model", isolation.saving),
        ):
            setattr(kind, name, wrap(getattr(kind, name)))
        isolation.patch_classes()

    def finish(self) -> None:
        """Record the files of the run, when the script has ended."""
        if self.rank == 0:
            self.write(kind="machine", **_machine())
            self.write(kind="files", files=files(self.mirror, self.home, _ours(self.job.engine)))
        self.write(kind="finished")
        self.file.close()

    def _training(self, isolation: Isolation, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def train(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
            self.trainings += 1
            recorder = StepRecorder(self, self.trainings, trainer)
            isolation.patch_classes()
            trainer.add_callback(recorder)
            self.recorders.append(recorder)
            self.write(kind="train", train=recorder.number, **_names(trainer))
            try:
                result = original(trainer, *args, **kwargs)
            finally:
                self.recorders.pop()
                trainer.remove_callback(recorder)
                self.flush()
            self._end(recorder.number, trainer)
            return result

        return train

    def _end(self, number: int, trainer: Trainer) -> None:
        drawn = generators()  # ahead of all that might draw
        optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
        home = self.mirror.root
        self.write(
            kind="end",
            train=number,
            step=trainer.state.global_step,
            sharded=any(hasattr(parameter, "to_local") for parameter in trainer.model.parameters()),
            log_history=[leaves(entry, home) for entry in trainer.state.log_history],
            state=leaves({name: getattr(trainer.state, name, None) for name in STATE}, home),
            weights={name: leaves(value)[""] for name, value in trainer.model.named_parameters()}
            | {name: leaves(value)[""] for name, value in trainer.model.named_buffers()},
            optimizer=leaves(optimizer.state_dict()) if optimizer else {},
            scheduler=leaves(scheduler.state_dict()) if scheduler else {},
            generators=drawn,
        )
        self.flush()

    def _step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def training_step(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
            loss = original(trainer, *args, **kwargs)
            if self.recorders and isinstance(loss, torch.Tensor):
                self.recorders[-1].losses.append(loss.detach())
            return loss

        return training_step

    def _passing(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Record what `predict` and `evaluate` return when the script calls them."""

        @functools.wraps(original)
        def passing(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
            result = original(trainer, *args, **kwargs)
            if not self.recorders:
                self.passes += 1
                values = result._asdict() if hasattr(result, "_asdict") else result
                self.write(
                    kind="pass", train=self.trainings, call=f"{name} {self.passes}", result=leaves(values)
                )
                self.flush()
            return result

        return passing


def _ours(engine: str) -> tuple[str, ...]:
    """Return the patterns of the files that only this engine writes."""
    if engine == "hf":
        return ()
    # Not at the top: it loads Lightning, which the process of HF's Trainer is to be without.
    from compat.checkpoint.layout import OURS

    return OURS


def _machine() -> dict[str, object]:
    """Describe devices and the settings of torch that numbers depend on."""
    cuda = torch.cuda.is_available()
    kind = Facts.device_type_here()
    count = 0 if kind in {"cpu", XLA} else ask(kind, "device_count", default=1)
    return {
        "devices": [ask(kind, "get_device_name", number, default=kind) for number in range(count)],
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def _names(trainer: Trainer) -> dict[str, str]:
    """Return the class of a trainer, and the class whose loop trains it."""
    kind = type(trainer)
    loop = next(each for each in kind.__mro__ if "_inner_training_loop" in vars(each))
    return {
        "trainer": f"{kind.__module__}.{kind.__qualname__}",
        "engine": f"{loop.__module__}.{loop.__qualname__}",
    }
