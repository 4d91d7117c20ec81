"""Base classes of Lightning loggers that write to a run which HF begins and ends."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from transformers.integrations import integration_utils as of_hf
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from transformers import TrainerState, TrainingArguments

    from compat.engine.host import TrainerHost


class Late:
    """An experiment that is opened at its first use; Lightning reads the attribute before HF's run begins."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._opened = opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened(), name)

    def __getitem__(self, key: object) -> Any:
        return self._opened()[key]

    def __setitem__(self, key: object, value: object) -> None:
        self._opened()[key] = value


class OfHFsRun:
    """Mixin for a Lightning logger whose run HF begins and ends."""

    belongs_to_hf = True
    """Whether HF's integration already writes HF's logs to the run."""

    _of: Callable[[], Any] = staticmethod(lambda: None)

    def follow(self, hf: TrainerHost) -> None:
        """Use the arguments and the state of `hf` to open a run."""
        self._of = weakref.ref(hf)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The object that HF's integration writes to."""
        found = self.find()
        return Late(self._opened) if found is None else found

    def _opened(self) -> Any:
        if self.find() is None:
            hf = self._of()
            self.open(hf.args, hf.state, hf.model)
        return self.find()

    def find(self) -> Any:
        """Return the object to write to; None before it is open."""
        raise NotImplementedError

    def open(self, args: TrainingArguments, state: TrainerState, model: nn.Module | None) -> None:
        """Open the run as HF would."""
        raise NotImplementedError

    def save(self) -> None:
        """Flush pending writes."""

    def finalize(self, status: Any = "success") -> None:
        """Flush pending writes only: HF's run continues after Lightning's."""
        self.save()


class OwnRun(OfHFsRun):
    """Mixin for a logger without an HF integration: it has its own run, in the folder of HF's logs."""

    _experiment: Any = None
    _is_placed = False

    def __init__(self) -> None:
        """Do nothing: the logger's own constructor is called once the folder is known."""

    @override
    def follow(self, hf: TrainerHost) -> None:
        super().follow(hf)
        self._place(hf.args, hf.state)

    @override
    def find(self) -> Any:
        return self._experiment

    @override
    def open(self, args: TrainingArguments, state: TrainerState, model: nn.Module | None) -> None:
        self._place(args, state)
        _ = super(OfHFsRun, self).experiment  # type: ignore[misc]

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        """Begin a training run: a trial of a search gets its own folder, any other run continues."""
        if trial_name(state):
            self._is_placed = False
        self._place(args, state)
        if self._experiment is None:
            self.open(args, state, None)

    def _place(self, args: TrainingArguments, state: TrainerState) -> None:
        if not self._is_placed:
            self.construct(logging_folder(args, state), args)
            self._is_placed = True

    def construct(self, folder: str, args: TrainingArguments) -> None:
        """Call the logger's own constructor."""
        raise NotImplementedError


def logging_folder(args: TrainingArguments, state: TrainerState) -> str:
    """Return the folder in which HF's TensorBoard integration would write a run that begins now."""
    folder = getattr(args, "logging_dir", None) or os.path.join(args.output_dir, of_hf.default_logdir())
    trial = trial_name(state)
    return os.path.join(folder, trial) if trial else folder


def trial_name(state: TrainerState) -> str | None:
    """Return the name of the current trial; None outside of a hyperparameter search."""
    return state.trial_name if state.is_hyper_param_search else None
