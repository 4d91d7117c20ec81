"""Lightning loggers over a run that HF begins and ends: what all of them share."""

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
    """An experiment that is opened at its first use; Lightning looks at it before HF's run begins."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._opened = opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened(), name)

    def __getitem__(self, key: object) -> Any:
        return self._opened()[key]

    def __setitem__(self, key: object, value: object) -> None:
        self._opened()[key] = value


class OfHFsRun:
    """Mixin of a Lightning logger whose run is HF's: begun and ended by HF, and saved by whoever writes."""

    belongs_to_hf = True
    """HF's own log goes into its run already; nobody has to hand it on."""

    _of: Callable[[], Any] = staticmethod(lambda: None)

    def follow(self, hf: TrainerHost) -> None:
        """Look at the arguments and the state of `hf` when a run has to be opened."""
        self._of = weakref.ref(hf)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What HF's integration writes to."""
        found = self.find()
        return Late(self._opened) if found is None else found

    def _opened(self) -> Any:
        if self.find() is None:
            hf = self._of()
            self.open(hf.args, hf.state, hf.model)
        return self.find()

    def find(self) -> Any:
        """What is written to; None before that is open."""
        raise NotImplementedError

    def open(self, args: TrainingArguments, state: TrainerState, model: nn.Module | None) -> None:
        """Open it as HF would."""
        raise NotImplementedError

    def save(self) -> None:
        """Write what is pending."""

    def finalize(self, status: Any = "success") -> None:
        """Nothing but writing what is pending: HF's run goes on after Lightning's."""
        self.save()


class OwnRun(OfHFsRun):
    """Mixin of a logger that HF has no integration for: a run of its own, in the folder of HF's logs."""

    _experiment: Any = None
    _is_placed = False

    def __init__(self) -> None:
        """Nothing: `_place` calls the logger's own constructor once the folder is known."""

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
        """Begin a run of training: a trial of a search has a folder of its own, any other goes on."""
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
    """The folder in which HF's TensorBoard integration would write a run that begins now."""
    folder = getattr(args, "logging_dir", None) or os.path.join(args.output_dir, of_hf.default_logdir())
    trial = trial_name(state)
    return os.path.join(folder, trial) if trial else folder


def trial_name(state: TrainerState) -> str | None:
    """The name of the trial in progress; None outside of a hyperparameter search."""
    return state.trial_name if state.is_hyper_param_search else None
