from __future__ import annotations

from typing import TYPE_CHECKING

import accelerate
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import nn

from tests.small import trainer

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
    import compat

    seen: list[bool] = []

    class Looking(compat.Trainer):
        def compute_loss(self, *args: object, **kwargs: object) -> object:
            seen.append(self.accelerator.sync_gradients)
            return super().compute_loss(*args, **kwargs)

    trainer(tmp_path, Looking, gradient_accumulation_steps=3, max_steps=2).train()
    assert seen == [False, False, True] * 2
