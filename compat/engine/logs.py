"""HF's logs, as Lightning's callbacks and loggers receive them."""

from __future__ import annotations

import contextlib
import numbers
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from typing_extensions import override

from compat.engine.loops import FitLoop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import lightning.pytorch as pl
    from lightning.pytorch.trainer.connectors.logger_connector.result import _METRICS


NO_METRICS = ("epoch",)
"""Keys that HF logs in addition to its metrics: Lightning counts epochs itself, and uses its count in file
names."""

KEPT_FROM_BARS = ("epoch", "_flos", "_per_second", "_runtime")
"""Suffixes of logged keys that a progress bar does not show."""


@contextlib.contextmanager
def without_loggers_of_hf(trainer: pl.Trainer) -> Iterator[None]:
    """Hide the loggers that write to the run of an HF integration from a Lightning Trainer."""
    loggers = trainer.loggers
    trainer.loggers = [one for one in loggers if not getattr(one, "belongs_to_hf", False)]
    try:
        yield
    finally:
        trainer.loggers = loggers


class HandedOnConnector(_LoggerConnector):
    """Lightning's metrics where HF's callbacks forward what modules log: loggers get it only once."""

    @override
    def log_metrics(self, metrics: dict[str, torch.Tensor], step: int | None = None) -> None:
        with without_loggers_of_hf(self.trainer):
            super().log_metrics(metrics, step)


class LoggerConnector(_LoggerConnector):
    """Lightning's metrics, with those that HF logs among them.

    HF's logs are in `log_history` and go to loggers once; this connector shows them to callbacks. Lightning
    sends the values that callbacks and modules log with `self.log` to loggers, on the same axis of update
    steps.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        super().__init__(trainer)
        self._own: set[str] = set()

    @property
    @override
    def metrics(self) -> _METRICS:
        found = super().metrics
        self._own.update(found["callback"])
        return found

    def show(self, logs: Mapping[str, Any]) -> None:
        """Show the values that HF has logged to callbacks.

        Args:
            logs: name → value; only numbers are shown, and none whose name a module or a callback has logged
                itself.
        """
        results = self.trainer._results
        if results is not None:
            # Read without computing it: the epoch of a logged value may still be in progress.
            self._own.update(entry.meta.name for _, entry in results.valid_items())
        hidden = {*NO_METRICS, *self._own}
        values = {
            name: float(value)
            for name, value in logs.items()
            if isinstance(value, numbers.Real) and name not in hidden
        }
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        self._callback_metrics.update(tensors)
        self._logged_metrics.update(tensors)
        shown = {name: value for name, value in values.items() if not name.endswith(KEPT_FROM_BARS)}
        self._progress_bar_metrics.update(shown)

    _is_left_to_hf = False

    def leave_to_hf(self) -> None:
        """Leave the values of this pass to HF's own log, which sends them to loggers under HF's names."""
        self._is_left_to_hf = True

    @override
    def log_eval_end_metrics(self, metrics: dict[str, torch.Tensor]) -> None:
        is_left, self._is_left_to_hf = self._is_left_to_hf, False
        if not is_left:
            super().log_eval_end_metrics(metrics)

    @override
    def on_batch_end(self) -> None:
        results = self.trainer._results
        if results is None or results:
            super().on_batch_end()
        else:
            # Nothing was logged with `self.log`, so there is nothing to reduce.
            results.batch = results.batch_size = None

    @override
    def update_train_step_metrics(self) -> None:
        if self.trainer._results:
            super().update_train_step_metrics()

    @property
    @override
    def should_update_logs(self) -> bool:
        trainer: Any = self.trainer
        loop, every = trainer._active_loop, trainer.log_every_n_steps
        if not isinstance(loop, FitLoop) or every == 0:
            return super().should_update_logs
        # Before the optimizer steps, the question is about the upcoming step.
        step = loop.epoch_loop._batches_that_stepped + (not loop.is_counted)
        return step % every == 0 or self.trainer.should_stop
