"""The handler of SIGTERM that transformers 5 sets for `enable_jit_checkpoint`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from transformers.trainer_jit_checkpoint import CheckpointManager
except ImportError:
    CheckpointManager = None

if TYPE_CHECKING:
    from collections.abc import Callable


def manager_behind(handler: Callable[..., Any] | int | None) -> Any:
    """Return the manager of this handler; None for any other handler, or if the release has no manager."""
    owner = getattr(handler, "__self__", None)
    return owner if CheckpointManager is not None and isinstance(owner, CheckpointManager) else None
