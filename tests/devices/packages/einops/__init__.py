"""What transformers 4 imports for attention on a device of type `npu`, and the tests do not call."""

from __future__ import annotations

from typing import Any


def rearrange(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError


repeat = rearrange
