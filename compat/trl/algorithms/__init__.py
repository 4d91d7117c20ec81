"""The algorithms of TRL 0.7's trainers as pure functions on tensors."""

from __future__ import annotations
