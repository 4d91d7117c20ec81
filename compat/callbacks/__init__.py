"""HF's callback events and Lightning's hooks, and adapters for callbacks in both directions."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compat.callbacks.hooks import EVENTS, Event

if TYPE_CHECKING:
    from compat.callbacks.hf_in_lightning import to_lightning
    from compat.callbacks.lightning_in_hf import to_hf

# The modules do not have their functions' names: importing a module sets it as a package attribute.
_LATE = {
    "to_hf": "compat.callbacks.lightning_in_hf",
    "to_lightning": "compat.callbacks.hf_in_lightning",
}

__all__ = ["EVENTS", "Event", "to_hf", "to_lightning"]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        msg = f"module 'compat.callbacks' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_LATE[name]), name)
