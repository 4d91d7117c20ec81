"""Python's cyclic garbage collector, where traversing everything finds nothing."""

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
        with spared():
            pass
        gc.enable()


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Exempt all existing objects from the collections within the block.

    Afterwards they are in the oldest generation. Where a process has frozen objects itself, nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
