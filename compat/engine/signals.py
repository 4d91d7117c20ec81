"""How a run ends when its process receives a signal to end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from functools import cached_property, partial
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from typing_extensions import override

from compat.upstream.jit_checkpoint import manager_behind

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
"""The handlers of a process for which none was set."""


DEAF, LISTENING, HEARD = range(3)
"""What a process shares with its dataloader workers: whether it handles signals, and has received one."""

SECONDS_TO_HEAR = 60.0
"""How long a Python signal handler may have to wait for native code to return."""


class SignalConnector(_SignalConnector):
    """Leaves the handlers of the process unchanged: a script and HF's callbacks have their own."""

    @override
    def register_signal_handlers(self) -> None:
        """Do nothing: the script and a `Listener` decide what a signal does."""


class Listener:
    """Handles the signals that announce the end of a process and would otherwise kill it.

    A second signal of the same kind has its original effect.

    Attributes:
        heard: the first signal received.
        taken: the original handlers, by number; empty while not listening. A handler that is no default
            belongs to the script, and is not replaced.
    """

    def __init__(self) -> None:
        self.heard: signal.Signals | None = None
        self.taken: dict[int, Any] = {}
        self._pid = 0
        self._announce: Callable[[signal.Signals], str] | None = None

    @cached_property
    def told(self) -> ctypes.c_int:
        """`DEAF`, `LISTENING` or `HEARD`, in memory shared with the dataloader workers."""
        shared: ctypes.c_int = RawValue("i", DEAF)
        return shared

    def __reduce__(self) -> tuple[type[Listener], tuple[()]]:
        """Pickle as a new `Listener`: a copy handles no signals and shares no memory."""
        return Listener, ()

    def listen(
        self,
        numbers: Iterable[int],
        *,
        whatever: Iterable[int] = (),
        announce: Callable[[signal.Signals], str] | None = None,
    ) -> None:
        """Install the handlers where only Python's defaults are set; only possible in the main thread.

        Args:
            numbers: the signals.
            whatever: the signals that are taken even if they have a handler.
            announce: returns the message on what a signal leads to, which is written to stderr at once.
        """
        self.heard = None
        if threading.current_thread() is not threading.main_thread():
            return
        self._pid, self._announce = os.getpid(), announce
        self.told.value = LISTENING
        whatever = set(whatever)
        for number in dict.fromkeys((*numbers, *whatever)):
            handler = signal.getsignal(number)
            manager = manager_behind(handler)
            if manager is None and not is_default(number) and number not in whatever:
                continue
            self.taken[number] = signal.signal(number, self._hear)
            if manager is not None and manager.is_checkpoint_requested:
                # The signal arrived before training began.
                manager.is_checkpoint_requested = False
                self._hear(number, None)

    def give_back(self) -> None:
        """Restore the original handlers, except those that have been replaced since."""
        for number, handler in self.taken.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        self.taken.clear()
        self._announce = None
        self.told.value = DEAF

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked process: the process that listens decides.
            return
        self.told.value = HEARD
        handler = self.taken[number]
        manager = manager_behind(handler)
        signal.signal(number, handler if manager is None else manager._original_sigterm_handler)
        if self.heard is not None:
            return
        self.heard = signal.Signals(number)
        if self._announce is not None and (sentence := self._announce(self.heard)):
            # Written past Python's buffers: the signal may have interrupted this thread inside them.
            with contextlib.suppress(OSError):
                os.write(2, f"compat: {sentence}\n".encode())


class Survivor:
    """Keeps a dataloader worker alive on a signal that is sent to the whole job.

    torchrun, SLURM and a terminal signal all processes of a group, and a run that has lost its workers could
    not finish its update step. A signal that only the worker receives ends it as usual: torch and
    multiprocessing end workers that way.

    Args:
        initialize: the loader's own `worker_init_fn`.
        listener: the listener of the process that owns the dataloader.
    """

    def __init__(self, initialize: Callable[[int], None] | None, listener: Listener) -> None:
        self.initialize = initialize
        self.taken: Iterable[int] = listener.taken
        self.told = listener.told

    def __getstate__(self) -> dict[str, Any]:
        # Shared memory can only be pickled for a process that is being started.
        told = self.told if get_spawning_popen() is not None else None
        return {"initialize": self.initialize, "taken": tuple(self.taken), "told": told}

    def __deepcopy__(self, memo: dict[int, Any]) -> Survivor:
        return self

    def __call__(self, worker: int) -> None:
        """Initialize a worker."""
        if self.initialize is not None:
            self.initialize(worker)
        parent = os.getppid()
        for number in self.taken:
            signal.signal(number, partial(_outlive, self.told, parent))


def _outlive(told: Any, parent: int, number: int, frame: FrameType | None) -> None:
    """Continue for now; the next signal of this kind ends the worker."""
    signal.signal(number, signal.SIG_DFL)
    if os.getppid() != parent or (told is not None and told.value == DEAF):
        os.kill(os.getpid(), number)
        return
    if told is not None and told.value == LISTENING:
        threading.Thread(target=_end_unless_told, args=(told, number), daemon=True).start()


def _end_unless_told(told: Any, number: int) -> None:
    """End this worker unless the process that started it has received the signal too."""
    until = time.monotonic() + SECONDS_TO_HEAR
    while told.value == LISTENING and time.monotonic() < until:
        time.sleep(0.05)
    if told.value != HEARD:
        os.kill(os.getpid(), number)


def is_default(number: int) -> bool:
    """Whether a signal has no handler, neither in Python nor in native code."""
    handler = signal.getsignal(number)
    if handler is signal.SIG_DFL:
        return not _is_caught_below(number)
    return handler in DEFAULTS


def _is_caught_below(number: int) -> bool:
    """Whether native code handles a signal, such as `faulthandler.register`; detected only on Linux."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    return False


@contextlib.contextmanager
def propagating() -> Iterator[None]:
    """Let Ctrl-C reach the script: Lightning would disable the signal and exit."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        interrupt = error.__context__
        if isinstance(interrupt, KeyboardInterrupt):
            _restore_sigint(handler)
            raise interrupt from None
        raise


def _restore_sigint(handler: Callable[..., Any] | int | None) -> None:
    # Only the main thread can set handlers, so Lightning has set one only there.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, handler)
