"""Python's cyclic garbage collector while modules are loaded."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Load modules without the collector.

    Modules stay for the life of a process, and the collector would traverse all that torch and transformers
    create again and again: a quarter of the time of their import. Afterwards these objects are in the oldest
    generation. A collector that was off stays off.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # There and back again: into the oldest generation, without being traversed.
            gc.freeze()
            gc.unfreeze()
        gc.enable()
