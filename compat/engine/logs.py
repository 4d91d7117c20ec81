"""HF's logs, as Lightning's callbacks and loggers see them."""

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
"""What HF logs beside its metrics: Lightning counts epochs itself, and names files by its own count."""

KEPT_FROM_BARS = ("epoch", "_flos", "_per_second", "_runtime")
"""Endings of what HF logs, and a progress bar has no room for."""


@contextlib.contextmanager
def without_loggers_of_hf(trainer: pl.Trainer) -> Iterator[None]:
    """Have a Lightning Trainer know only those loggers that do not write to the run of an HF integration."""
    loggers = trainer.loggers
    trainer.loggers = [one for one in loggers if not getattr(one, "belongs_to_hf", False)]
    try:
        yield
    finally:
        trainer.loggers = loggers


class HandedOnConnector(_LoggerConnector):
    """Lightning's metrics where HF's callbacks hand on what modules log: their loggers are not told twice."""

    @override
    def log_metrics(self, metrics: dict[str, torch.Tensor], step: int | None = None) -> None:
        with without_loggers_of_hf(self.trainer):
            super().log_metrics(metrics, step)


class LoggerConnector(_LoggerConnector):
    """Lightning's metrics, with those that HF logs among them.

    HF owns what it logs: it stands in `log_history`, goes to loggers once, and is shown to callbacks here.
    What callbacks and modules log by `self.log` goes to loggers by Lightning, on the same axis of update
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
        """Have callbacks see what HF has logged.

        Args:
            logs: name → value; numbers alone are shown, and none under a name that a module or a callback has
                logged itself.
        """
        results = self.trainer._results
        if results is not None:
            # Looked up rather than computed: what is logged may be in the middle of its epoch.
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
        """What is logged of the pass that ends goes to loggers by HF's own log, under HF's names."""
        self._is_left_to_hf = True

    @override
    def log_eval_end_metrics(self, metrics: dict[str, torch.Tensor]) -> None:
        is_left, self._is_left_to_hf = self._is_left_to_hf, False
        if not is_left:
            super().log_eval_end_metrics(metrics)

    @property
    @override
    def should_update_logs(self) -> bool:
        trainer: Any = self.trainer
        loop, every = trainer._active_loop, trainer.log_every_n_steps
        if not isinstance(loop, FitLoop) or every == 0:
            return super().should_update_logs
        # Before the optimizer steps, what is asked about is the step to come.
        step = loop.epoch_loop.global_step + (not loop.is_counted)
        return step % every == 0 or self.trainer.should_stop
