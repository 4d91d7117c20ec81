"""What transformers and accelerate look for before they use a device of type `npu`."""

from __future__ import annotations

from typing import Any

__version__ = "2.13.0"


def register() -> None:
    """Register the device; torch calls it at the end of its own import."""
    from tests.devices import stand_in  # noqa: F401


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *_, **__: None
