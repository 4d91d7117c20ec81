"""Inspection of callers' frames: who reads an attribute, and which line a warning points to."""

from __future__ import annotations

import dis
import sys
from typing import Any

_ACCESSES = frozenset(dis.opmap[name] for name in ("LOAD_ATTR", "LOAD_METHOD") if name in dis.opmap)


def is_read_by_dataclasses() -> bool:
    """Whether `dataclasses` reads the attribute, to copy it; called by a descriptor's `__get__`."""
    return sys._getframe(2).f_globals.get("__name__") == "dataclasses"


def is_read_by_name() -> bool:
    """Whether `hasattr` or `getattr` read the attribute, not `args.name`; called by a descriptor's `__get__`.

    These builtins have no frame, so that the caller's frame is at a call and not at an attribute access.
    """
    frame = sys._getframe(2)
    return frame.f_code.co_code[frame.f_lasti] not in _ACCESSES


def distance_to_user() -> int:
    """Return the `stacklevel` of the line that created the arguments, as `warnings` counts it."""
    distance, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_machinery(frame):
        distance, frame = distance + 1, frame.f_back
    return distance


def _is_machinery(frame: Any) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    ours = module.partition(".")[0] in {"compat", "transformers", "dataclasses"}
    return ours or frame.f_code.co_name in {"__init__", "__post_init__"}
