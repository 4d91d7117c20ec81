from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import GradientState

from compat.engine.optimizer import SyncedOptimizer
from compat.engine.precision import HFPrecision, PreciseForward, set_autocast
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


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("overflows", [False, True], ids=["finite", "overflow"])
def test_a_skipped_step_is_what_accelerate_takes_for_one(fused: bool, overflows: bool) -> None:
    found = []
    for steps_of in ("accelerate", "compat"):
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1e30 if overflows else 8.0)
        scaler.scale(layer(torch.full((1, 2), 1e20 if overflows else 1.0)).sum()).backward()
        if steps_of == "accelerate":
            accelerated = AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
            accelerated.step()
            skipped = accelerated.step_was_skipped
        else:
            own = vars(optimizer).get("step")
            precision, synced = HFPrecision("16-mixed", scaler), SyncedOptimizer(optimizer, GradientState())
            precision.step(synced)
            skipped = precision.step_was_skipped
            assert synced.step_was_skipped == skipped
            assert vars(optimizer).get("step") is own
        found.append((skipped, scaler.get_scale(), [weight.tolist() for weight in layer.parameters()]))
    assert found[0] == found[1]
    assert found[0][0] is (overflows and not fused)
