from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING

import torch

from compat.engine.precision import PreciseForward, set_autocast
from tests.small import Regression, trainer

if TYPE_CHECKING:
    from pathlib import Path


class Telling(torch.nn.Module):
    """Tells the type it computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.computed_in: torch.dtype | None = None

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.layer(x)
        self.computed_in = out.dtype
        return {"out": out}


def test_forward_computes_in_bf16_and_returns_fp32() -> None:
    model = Telling()
    set_autocast(model, "cpu", "bf16")
    assert model(torch.ones(1, 2))["out"].dtype is torch.float32
    assert model.computed_in is torch.bfloat16


def test_signature_and_copies_survive() -> None:
    model = Telling()
    set_autocast(model, "cpu", "bf16")
    assert list(inspect.signature(model.forward).parameters) == ["x"]
    twin = copy.deepcopy(model)
    twin.layer.weight.data.zero_()
    twin.layer.bias.data.zero_()
    assert twin(torch.ones(1, 2))["out"].abs().sum() == 0
    assert model(torch.ones(1, 2))["out"].abs().sum() > 0


def test_full_precision_takes_it_off_again() -> None:
    model = Telling()
    set_autocast(model, "cpu", "bf16")
    set_autocast(model, "cpu", "bf16")
    assert not isinstance(model.forward.forward, PreciseForward)
    set_autocast(model, "cpu", "no")
    assert "forward" not in vars(model)
    model(torch.ones(1, 2))
    assert model.computed_in is torch.float32


def test_a_forward_of_the_instance_comes_back() -> None:
    model = Telling()
    own = lambda x: {"own": model.layer(x)}  # noqa: E731 (a plain function is what is tested)
    model.forward = own
    set_autocast(model, "cpu", "bf16")
    assert set(model(torch.ones(1, 2))) == {"own"}
    set_autocast(model, "cpu", "no")
    assert model.forward is own


def test_a_second_trainer_of_full_precision_is_not_in_half_precision(tmp_path: Path) -> None:
    model = Regression()
    half = trainer(tmp_path, model=model, bf16=True)
    half.train()
    full = trainer(tmp_path, model=model)
    full.evaluate()
    assert not isinstance(vars(model).get("forward"), PreciseForward)
