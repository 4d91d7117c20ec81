from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import transformers

import compat
from tests.small import arguments

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}


class Killed(transformers.TrainerCallback):
    def on_save(self, args: object, state: transformers.TrainerState, *_: object, **__: object) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def seeing() -> transformers.PreTrainedModel:
    """A model whose weights transformers 5 saves under the names of transformers 4."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    return transformers.ViTForImageClassification(config)


def run(folder: Path, *callbacks: transformers.TrainerCallback, **options: object) -> compat.Trainer:
    generator = torch.Generator().manual_seed(0)
    data = [
        {"pixel_values": torch.randn(1, 8, 8, generator=generator), "labels": index % 3} for index in range(8)
    ]
    return compat.Trainer(
        seeing(),
        arguments(folder, **OPTIONS, **options),
        train_dataset=data,
        eval_dataset=data,
        callbacks=list(callbacks),
    )


def test_weights_under_older_names_are_loaded(tmp_path: Path) -> None:
    """HF loads none of them, and trains on from the weights that the script has begun with."""
    whole = run(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Killed()).train()
    resumed = run(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_best_of_them_is_loaded(tmp_path: Path) -> None:
    best = run(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="runtime",
        greater_is_better=True,
    )
    kept: dict[int, dict[str, torch.Tensor]] = {}

    class Keeping(transformers.TrainerCallback):
        def on_save(self, args: object, state: transformers.TrainerState, *_: object, **__: object) -> None:
            kept[state.global_step] = {n: v.clone() for n, v in best.model.state_dict().items()}

    best.add_callback(Keeping())
    best.train()
    expected = kept[best.state.best_global_step]
    assert all(torch.equal(value, expected[name]) for name, value in best.model.state_dict().items())
