"""Conversion of checkpoints between forms, one tensor at a time."""

from __future__ import annotations

from compat.checkpoint.convert.conversion import Converted, convert
from compat.checkpoint.convert.forms import FORMS, Form

__all__ = ["FORMS", "Converted", "Form", "convert"]
