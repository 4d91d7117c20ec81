from __future__ import annotations

from typing import TYPE_CHECKING

import accelerate
import pytest
import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs
from torch import nn

import compat
from compat.trainer.accelerator import LightningAccelerator
from tests.small import losses, trainer

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_an_accelerator(tmp_path: Path) -> None:
    face = trainer(tmp_path).accelerator
    assert isinstance(face, accelerate.Accelerator)
    assert (face.num_processes, face.process_index, face.is_main_process) == (1, 0, True)


def test_it_wraps_neither_model_nor_optimizer(tmp_path: Path) -> None:
    face = trainer(tmp_path).accelerator
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    prepared = face.prepare(model, optimizer, scheduler)
    assert prepared[0] is model
    assert prepared[1].optimizer is optimizer
    assert prepared[2] is scheduler
    assert "forward" not in vars(model)
    assert not isinstance(prepared[1], AcceleratedOptimizer)


def test_its_state_is_its_own(tmp_path: Path) -> None:
    half, full = trainer(tmp_path, bf16=True), trainer(tmp_path)
    assert (half.accelerator.mixed_precision, full.accelerator.mixed_precision) == ("bf16", "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert half.accelerator.device == torch.device("cpu")
    assert half.accelerator.mixed_precision == "bf16"


def test_backward_outside_of_a_run(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    trainer(tmp_path).accelerator.backward((weight * 3).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 3


def test_gradients_are_in_sync_at_the_end_of_a_window(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Looking(compat.Trainer):
        def compute_loss(self, *args: object, **kwargs: object) -> object:
            seen.append(self.accelerator.sync_gradients)
            return super().compute_loss(*args, **kwargs)

    trainer(tmp_path, Looking, gradient_accumulation_steps=3, max_steps=2).train()
    assert seen == [False, False, True] * 2


def test_an_accelerator_that_a_subclass_builds_is_adopted(tmp_path: Path) -> None:
    def with_own_accelerator(base: type) -> type:
        class Own(base):
            def create_accelerator_and_postprocess(self) -> None:
                super().create_accelerator_and_postprocess()
                self.accelerator = accelerate.Accelerator(cpu=True)
                self.gather_function = self.accelerator.gather_for_metrics

        return Own

    theirs = trainer(tmp_path, with_own_accelerator(transformers.Trainer))
    theirs.train()
    ours = trainer(tmp_path, with_own_accelerator(compat.Trainer))
    ours.train()
    assert losses(ours) == losses(theirs)
    replaced = trainer(tmp_path)
    replaced.accelerator = accelerate.Accelerator(cpu=True)
    assert replaced.evaluate()["eval_loss"] > 0
    assert isinstance(replaced.accelerator, LightningAccelerator)


def test_its_own_accumulation_divides_the_loss(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    face = trainer(tmp_path).accelerator
    face.gradient_accumulation_steps = 4
    face.backward((weight * 3).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 0.75


def test_unwrapping_takes_mixed_precision_off(tmp_path: Path) -> None:
    half = trainer(tmp_path, bf16=True)
    half.train()
    assert "forward" in vars(half.model)
    assert half.accelerator.unwrap_model(half.model, keep_fp32_wrapper=False) is half.model
    assert "forward" not in vars(half.model)
    assert half.model(torch.ones(1, 4))["logits"].shape == (1, 1)


def test_a_spy_on_backward_sees_gradients(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    backward, seen = ours.accelerator.backward, []

    def spy(loss: torch.Tensor, **kwargs: object) -> None:
        backward(loss, **kwargs)
        seen.append(ours.model.out.weight.grad is not None)

    ours.accelerator.backward = spy
    ours.train()
    assert seen == [True, True, True]


def test_a_loss_that_is_no_scalar_is_refused_by_torch(tmp_path: Path) -> None:
    class Vector(compat.Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict, **kwargs: object) -> torch.Tensor:
            return model(**inputs)["logits"].flatten()

    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        trainer(tmp_path, Vector).train()


def test_its_autocast_handler_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # HF's own Trainer of transformers 4 is told by this alone; our arguments keep it to themselves.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")

    def run(base: type, **options: object) -> list[float]:
        made = trainer(tmp_path, base, bf16=True)
        for name, value in options.items():
            setattr(made.accelerator, name, value)
        made.train()
        return losses(made)

    off = AutocastKwargs(enabled=False)
    assert run(compat.Trainer, autocast_handler=off) == run(transformers.Trainer, autocast_handler=off)
    assert run(compat.Trainer, autocast_handler=off) != run(compat.Trainer)
