"""HF's callback events and Lightning's hooks, side by side."""

from __future__ import annotations

from compat.callbacks.hooks import EVENTS, Event

__all__ = ["EVENTS", "Event"]
