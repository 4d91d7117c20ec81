"""Reports the number of bytes read to a listener, such as a progress bar."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LISTENER: ContextVar[Callable[[int], object] | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def telling(listener: Callable[[int], object]) -> Iterator[None]:
    """Call `listener` with the number of bytes whenever bytes are read."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(count: int) -> None:
    """Report that `count` bytes were read."""
    listener()(count)


def listener() -> Callable[[int], object]:
    """Return this thread's listener, to be used in other threads."""
    return _LISTENER.get() or (lambda _: None)
