"""accelerate's face over Fabric: what is prepared, and when it steps."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from compat.errors import ArgumentError
from compat.fabric.accelerator import AgreedSampler, FabricAccelerator, FabricOptimizer
from tests.small import Regression, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _state_of_nobody() -> Iterator[None]:
    """accelerate's own accelerator leaves a state behind that no other may contradict."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def parts(seed: int = 0) -> tuple[Regression, torch.optim.Optimizer, Any]:
    torch.manual_seed(seed)
    model = Regression().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def run(make: Callable[[], Any]) -> list[Any]:
    """Weights and learning rate after each micro-batch of two epochs, five batches each."""
    accelerator = make()
    model, optimizer, scheduler = parts()
    torch.manual_seed(3)
    loader = DataLoader(rows(10), batch_size=2, shuffle=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    told: list[Any] = []
    for batch in [batch for _ in range(2) for batch in loader]:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        told += [scheduler.get_last_lr()[0], *(p.detach().clone() for p in model.parameters())]
    return told


def test_steps_like_accelerate() -> None:
    theirs = run(lambda: accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2))
    ours = run(lambda: FabricAccelerator(gradient_accumulation_steps=2))
    assert len(ours) == len(theirs) == 50
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_what_is_prepared() -> None:
    accelerator = FabricAccelerator()
    model, optimizer, scheduler = parts()
    prepared = accelerator.prepare(model, optimizer, None, scheduler, "else")
    assert prepared[0] is model
    assert isinstance(prepared[1], FabricOptimizer)
    assert prepared[2] is None
    assert prepared[3].scheduler is scheduler
    assert prepared[4] == "else"
    assert accelerator.prepare(prepared[0]) is model
    assert accelerator.prepare(prepared[1]) is prepared[1]
    assert isinstance(accelerator.fabric, Fabric)
    assert accelerator.unwrap_model(model) is model
    assert accelerator.get_state_dict(model).keys() == model.state_dict().keys()


def test_an_optimizer_leaves_gradients_of_zeros() -> None:
    accelerator = FabricAccelerator()
    model, optimizer, _ = parts()
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.backward(model(**{k: v[None] for k, v in rows(1)[0].items()})["loss"])
    optimizer.zero_grad()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_does_not_train_is_only_placed() -> None:
    accelerator = FabricAccelerator(lightning={"precision": "bf16-mixed"})
    frozen = Regression().requires_grad_(False)
    assert accelerator.prepare(frozen) is frozen
    batch = {k: v[None] for k, v in rows(1)[0].items()}
    plain = copy.deepcopy(frozen)
    del plain.forward
    frozen.eval(), plain.eval()
    mixed = frozen(**batch)["logits"]
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - plain(**batch)["logits"]).abs().max() < 0.1
    # Another accelerator, another precision: it is the latest that counts.
    FabricAccelerator().prepare(frozen)
    assert torch.equal(frozen(**batch)["logits"], plain(**batch)["logits"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lightning": {"precission": 16}}, "'precission'.*no such flag.*precision"),
        ({"lightning": {"devices": 0}}, "'devices': 0.*positive integer"),
        ({"lightning": {"precision": "17"}}, "17.*Fabric does not take it"),
        ({"lightning": {"devices": [1]}}, r"'devices': \[1\].*CUDA_VISIBLE_DEVICES"),
        ({"lightning": {"num_nodes": "x"}}, "'num_nodes': 'x'.*positive integer"),
        ({"lightning": {"accelerator": "tpu"}}, "'accelerator': 'tpu'.*runs on 'cpu'"),
        ({"lightning": {"strategy": "deepspeed_stage_x"}}, "deepspeed_stage_x.*Choose among deepspeed, "),
        ({"lightning": {"loggers": True}}, "'loggers': True.*not a Lightning logger"),
        ({"lightning": "ddp"}, "lightning='ddp'.*not a dictionary"),
        (
            {"lightning": {"precision": "32-true"}, "mixed_precision": "bf16"},
            "'precision': '32-true'.*mixed_precision='bf16'",
        ),
        ({"further": {"megatron_lm_plugin": object()}}, "megatron_lm_plugin.*Remove it"),
        ({"further": {"nothing": 1}}, "'nothing'.*accelerate has no such option"),
        (
            {"further": {"log_with": "wandb"}, "log_with": None},
            "'log_with'.*the trainer gives it by an argument of its own",
        ),
    ],
)
def test_what_fabric_does_not_take(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FabricAccelerator(**given)


def test_orders_are_those_of_torch() -> None:
    """An agreed order draws from torch's generator what a `RandomSampler` draws."""
    data = list(range(20))
    torch.manual_seed(5)
    plain = torch.utils.data.RandomSampler(data)
    wanted = [list(plain), list(plain), torch.rand(1).item()]
    torch.manual_seed(5)
    agreed = AgreedSampler(data, generator=torch.Generator())
    assert [list(agreed), list(agreed), torch.rand(1).item()] == wanted


def test_options_of_data_have_moved() -> None:
    accelerator = FabricAccelerator(further={"split_batches": True, "even_batches": False})
    assert (accelerator.split_batches, accelerator.even_batches) == (True, False)


def test_a_precision_is_the_same_by_either_name() -> None:
    accelerator = FabricAccelerator(lightning={"precision": "bf16-mixed", "devices": None})
    assert accelerator.mixed_precision == "bf16"
    assert FabricAccelerator().mixed_precision == "no"


def test_a_failure_leaves_nothing_behind() -> None:
    with pytest.raises(ValueError, match="fp8"):
        FabricAccelerator(further={"mixed_precision": "fp8"})
    assert FabricAccelerator().mixed_precision == "no"
