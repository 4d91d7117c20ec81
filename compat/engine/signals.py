"""How a run of Lightning ends when the process is told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from functools import partial
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from typing_extensions import override

from compat.upstream.jit_checkpoint import manager_behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
"""The handlers of a process that nobody has given one."""


DEAF, LISTENING, HEARD = range(3)
"""What a process tells the workers of its dataloaders: whether it listens to signals, and has heard one."""

SECONDS_TO_HEAR = 60.0
"""How long a handler of Python's may have to wait for the end of what runs below it."""


class SignalConnector(_SignalConnector):
    """Leaves the handlers of the process as they are: a script and HF's callbacks have their own."""

    @override
    def register_signal_handlers(self) -> None:
        """Nothing: what a signal does is the script's affair, and a `Listener`'s."""


class Listener:
    """Hears the signals that announce the end of a process, of which the process would otherwise die.

    A second one of a kind does what it would have done without us.

    Attributes:
        heard: the first signal that has arrived.
        taken: the handlers that were there, by number; empty while nothing is listened to. One that is no
            default is a script's own, and is left alone.
        told: `DEAF`, `LISTENING` or `HEARD`, in memory that is shared with the workers of dataloaders.
    """

    def __init__(self) -> None:
        self.told = RawValue("i", DEAF)
        self.heard: signal.Signals | None = None
        self.taken: dict[int, Any] = {}
        self._pid = 0
        self._announce: Callable[[signal.Signals], str] | None = None

    def __reduce__(self) -> tuple[type[Listener], tuple[()]]:
        """A copy listens to nothing, and shares nothing."""
        return Listener, ()

    def listen(
        self,
        numbers: Iterable[int],
        *,
        whatever: Iterable[int] = (),
        announce: Callable[[signal.Signals], str] | None = None,
    ) -> None:
        """Take the handlers, where there are none but python's; only the main thread may.

        Args:
            numbers: the signals.
            whatever: those that are taken whoever handles them.
            announce: says what a signal leads to; it is written to stderr at once.
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
                # It came before training began.
                manager.is_checkpoint_requested = False
                self._hear(number, None)

    def give_back(self) -> None:
        """Put the handlers back, but for those that somebody has replaced meanwhile."""
        for number, handler in self.taken.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        self.taken.clear()
        self._announce = None
        self.told.value = DEAF

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A process that was forked off; the one that listens decides.
            return
        self.told.value = HEARD
        handler = self.taken[number]
        manager = manager_behind(handler)
        signal.signal(number, handler if manager is None else manager._original_sigterm_handler)
        if self.heard is not None:
            return
        self.heard = signal.Signals(number)
        if self._announce is not None and (sentence := self._announce(self.heard)):
            # Past python's buffers, in which the signal may have come upon this very thread.
            with contextlib.suppress(OSError):
                os.write(2, f"compat: {sentence}\n".encode())


class Survivor:
    """Has the worker of a dataloader outlive a signal that is meant for the whole job.

    torchrun, SLURM and a terminal signal all processes of a group, and a run that has lost its workers could
    not finish its update step. A signal that the worker alone gets ends it, as it would have without us:
    by it torch and multiprocessing end workers.

    Args:
        initialize: what else begins a worker.
        listener: of the process that has the dataloader.
    """

    def __init__(self, initialize: Callable[[int], None] | None, listener: Listener) -> None:
        self.initialize = initialize
        self.taken: Iterable[int] = listener.taken
        self.told = listener.told

    def __getstate__(self) -> dict[str, Any]:
        # Memory is shared with a process that is being started, and with nobody else.
        told = self.told if get_spawning_popen() is not None else None
        return {"initialize": self.initialize, "taken": tuple(self.taken), "told": told}

    def __deepcopy__(self, memo: dict[int, Any]) -> Survivor:
        return self

    def __call__(self, worker: int) -> None:
        """Begin a worker."""
        if self.initialize is not None:
            self.initialize(worker)
        parent = os.getppid()
        for number in self.taken:
            signal.signal(number, partial(_outlive, self.told, parent))


def _outlive(told: Any, parent: int, number: int, frame: FrameType | None) -> None:
    """Go on for now; the next signal of the kind ends the worker."""
    signal.signal(number, signal.SIG_DFL)
    if os.getppid() != parent or (told is not None and told.value == DEAF):
        os.kill(os.getpid(), number)
        return
    if told is not None and told.value == LISTENING:
        threading.Thread(target=_end_unless_told, args=(told, number), daemon=True).start()


def _end_unless_told(told: Any, number: int) -> None:
    """End this worker if the process that has started it has not heard the signal too."""
    until = time.monotonic() + SECONDS_TO_HEAR
    while told.value == LISTENING and time.monotonic() < until:
        time.sleep(0.05)
    if told.value != HEARD:
        os.kill(os.getpid(), number)


def is_default(number: int) -> bool:
    """Whether nobody handles a signal, neither in Python nor below it."""
    handler = signal.getsignal(number)
    if handler is signal.SIG_DFL:
        return not _is_caught_below(number)
    return handler in DEFAULTS


def _is_caught_below(number: int) -> bool:
    """Whether code in C handles a signal, as `faulthandler.register` has it; told on Linux alone."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    return False


@contextlib.contextmanager
def propagating() -> Iterator[None]:
    """Let Ctrl-C reach the script, which Lightning would turn into an exit with the signal switched off."""
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
    # Only the main thread may set handlers, and only there has Lightning set one.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, handler)
