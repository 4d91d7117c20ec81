"""Text environments, in which a model calls tools.

Mirrors `trl/environment` of TRL 0.7.11.
"""

from __future__ import annotations

from compat.trl.environment.base_environment import TextEnvironment, TextHistory

__all__ = ["TextEnvironment", "TextHistory"]
