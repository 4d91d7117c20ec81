"""What HF's constructor has been given, by position or by name."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Trainer as HFTrainer  # HF's own, also after `compat.install()`

POSITIONS = {name: place - 1 for place, name in enumerate(inspect.signature(HFTrainer.__init__).parameters)}
"""Parameter → its place, `self` left out."""


class Given:
    """The arguments of a call of HF's constructor.

    Args:
        args: those given by position, `self` left out.
        kwargs: those given by name.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = list(args)
        self.kwargs = kwargs

    def __getitem__(self, name: str) -> Any:
        """The value of a parameter; None where it was not given."""
        place = POSITIONS[name]
        return self.args[place] if place < len(self.args) else self.kwargs.get(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Give another value."""
        place = POSITIONS[name]
        if place < len(self.args):
            self.args[place] = value
        else:
            self.kwargs[name] = value
