"""What optimizers keep outside of their `state_dict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compat.engine.optimizer_state import OWN_ATTRIBUTES, held_state, load_held_state

if TYPE_CHECKING:
    import pytest


class InAttributes(torch.optim.SGD):
    """As AdaLomo: its statistics are attributes, by the names of parameters."""

    def __init__(self, model: nn.Module, value: float) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.number = value
        self.squares = {name: torch.full((2,), value) for name, _ in model.named_parameters()}


def test_attributes_that_are_state_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWN_ATTRIBUTES, (__name__, "InAttributes"), ("number", "squares"))
    model = nn.Linear(1, 1)
    held = held_state(InAttributes(model, 3.0), model)
    again = InAttributes(model, 0.0)
    own: Any = dict(again.squares)
    load_held_state(again, model, held)
    assert again.number == 3.0
    assert {name: value.tolist() for name, value in again.squares.items()} == {
        "weight": [3.0, 3.0],
        "bias": [3.0, 3.0],
    }
    # In their place, for they may lie on a device.
    assert all(again.squares[name] is own[name] for name in own)
    assert held_state(torch.optim.SGD(model.parameters(), lr=0.1), model) == {}
