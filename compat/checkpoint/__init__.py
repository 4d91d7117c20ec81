"""Checkpoints in HF's layout, read and written through Lightning's CheckpointIO."""

from __future__ import annotations

from compat.checkpoint.io import HFCheckpointIO
from compat.checkpoint.layout import LAYOUT, Part

__all__ = ["LAYOUT", "HFCheckpointIO", "Part"]
