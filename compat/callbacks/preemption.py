"""Saving a run that is told to end."""

from __future__ import annotations

import signal
import threading
from typing import Any

from transformers import TrainerCallback


class SaveOnSigterm(TrainerCallback):  # type: ignore[misc]
    """Saves and stops at the end of the update step in which SIGTERM arrives.

    Does what `enable_jit_checkpoint` asks for where the installed transformers has no code for it. The
    handler holds while a training runs in the main thread, the only one that may set it.
    """

    def __init__(self) -> None:
        self._is_told = False
        self._handler: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen."""
        self._is_told = False
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._hear)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the run saved and stopped, if it was told to end."""
        if self._is_told:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the handler back."""
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    def _hear(self, signum: int, frame: Any) -> None:
        self._is_told = True
