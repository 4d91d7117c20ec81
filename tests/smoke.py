"""Trains a small model under Hugging Face's Trainer and under ours, and compares.

`make test-pythons` runs it with an installed package, in an environment that has only what that asks for.
"""

from __future__ import annotations

import sys
import tempfile

import torch
import transformers

import compat


class Model(torch.nn.Module):
    """One layer and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(inputs)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def trained(library: object, folder: str) -> list[object]:
    """The log of a run and its weights."""
    torch.manual_seed(0)
    rows = [{"inputs": torch.randn(4), "labels": torch.tensor(i % 2)} for i in range(16)]
    args = library.TrainingArguments(
        folder, max_steps=4, save_steps=2, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = library.Trainer(Model(), args, train_dataset=rows)
    trainer.train()
    logged = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]
    return [logged, trainer.model.layer.weight.tolist()]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        assert trained(compat, one) == trained(transformers, other)
    assert compat.__file__.startswith(sys.prefix), compat.__file__
    print(f"Python {sys.version.split()[0]}: compat {compat.__version__}, equal to transformers.Trainer")
