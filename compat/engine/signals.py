"""How a run of Lightning ends when the process is told to end."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator


class SignalConnector(_SignalConnector):
    """Leaves the handlers of the process as they are: a script and HF's callbacks have their own."""

    @override
    def register_signal_handlers(self) -> None:
        """Nothing: under HF a signal does what the script has it do."""


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


def _restore_sigint(handler: Any) -> None:
    # Only the main thread may set handlers, and only there has Lightning set one.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, handler)
