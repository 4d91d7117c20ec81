"""How many bytes have been read, told to whoever shows it."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LISTENER: ContextVar[Callable[[int], object] | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def telling(listener: Callable[[int], object]) -> Iterator[None]:
    """Call `listener` with the number of bytes whenever some are read."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(count: int) -> None:
    """Say that so many bytes were read."""
    listener()(count)


def listener() -> Callable[[int], object]:
    """What is to be told of bytes: for other threads, which do not know of this one's."""
    return _LISTENER.get() or (lambda _: None)
