"""HF's Trainer under one set of names, whichever release is installed.

The engine calls a handful of steps by name. transformers 5.3 has them as methods; up to 5.2 the whole
training is one function, whose steps are methods here.
"""

from __future__ import annotations

from typing import Any

from compat.upstream.features import HAS_TRAINING_SEAMS

TrainerSeams: type[Any]
"""The base of our Trainer: HF's, with every seam under the newest release's name."""

if HAS_TRAINING_SEAMS:
    from compat.upstream.seams.v5 import V5Seams

    TrainerSeams = V5Seams
else:
    from compat.upstream.seams.v4 import V4Seams

    TrainerSeams = V4Seams

__all__ = ["TrainerSeams"]
