"""How a run of Lightning ends when the process is told to end."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def propagating() -> Iterator[None]:
    """Let signals end the script as they should: Ctrl-C as KeyboardInterrupt, SIGTERM with its own status."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        # Lightning has finished the batch; a scheduler is told what ended the process.
        raise SystemExit(128 + signal.SIGTERM) from None
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
