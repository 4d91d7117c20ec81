"""A run that is interrupted and resumed, anywhere, against the same run undisturbed: equal to the bit."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import DataLoader, Dataset, IterableDataset

import compat
from compat.engine.position import draws, redraw
from tests.small import Regression, rows, trainer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = rows(14)


class Noisy(Dataset):  # type: ignore[type-arg]
    """Draws from three generators for every sample."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = torch.rand(4) + random.random() + np.random.rand()  # noqa: NPY002, S311
        return {**ROWS[index], "x": ROWS[index]["x"] + noise}


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Has no length, and ends before the run does."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from ROWS


def noisy(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return {**batch, "x": batch["x"] * (torch.rand(1) + np.random.normal())}  # noqa: NPY002


class Stateful:
    """A loader that knows where it stands, and counts what it draws."""

    def __init__(self) -> None:
        self.position = self.drawn = self.first = 0

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.position, self.first = self.first, 0
        while self.position < len(self):
            self.drawn += 1
            self.position += 1
            yield noisy(ROWS[2 * self.position - 2 : 2 * self.position])

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first = state["position"]


class Own(compat.Trainer):
    """Has a loader that accelerate does not know."""

    def get_train_dataloader(self) -> Any:
        return LOADERS[self.args.run_name]()


class Unordered(compat.Trainer):
    """Draws its order from the generator that the model's dropout draws from."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.WeightedRandomSampler([1.0] * 14, 14)


LOADERS: dict[str, Any] = {
    "plain": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True, collate_fn=noisy),
    "stream": lambda: DataLoader(Stream(), batch_size=2, collate_fn=noisy),
    "stateful": Stateful,
}


class Killed(transformers.TrainerCallback):
    """Ends a run right after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def quadratic(step: int) -> float:
    return 1.0 / (1 + step) ** 2


def cyclic(model: Regression) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3)
    return optimizer, scheduler


def chained(model: Regression) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedulers = torch.optim.lr_scheduler
    parts: list[Any] = [
        schedulers.LambdaLR(optimizer, quadratic),
        schedulers.CosineAnnealingWarmRestarts(optimizer, 2),
    ]
    return optimizer, schedulers.SequentialLR(optimizer, parts, milestones=[4])


# What differs from a run over plain rows; `optimizers` is called with the model.
SETUPS: dict[str, dict[str, Any]] = {
    "rows": {},
    "dataset": {"train_dataset": Noisy()},
    "collator": {"data_collator": noisy},
    "accumulation": {"train_dataset": Noisy(), "gradient_accumulation_steps": 3},
    "sampler": {"kind": Unordered},
    "workers": {"dataloader_num_workers": 2, "kind": Unordered},
    "noisy workers": {
        "train_dataset": Noisy(),
        "dataloader_num_workers": 2,
        "lightning": {"replay_data": True},
    },
    "replayed": {"train_dataset": Noisy(), "lightning": {"replay_data": True}},
    "stream": {"train_dataset": Stream(), "data_collator": noisy},
    "stream-accumulation": {"train_dataset": Stream(), "gradient_accumulation_steps": 2},
    "own loader": {"kind": Own, "run_name": "plain"},
    "own stream": {"kind": Own, "run_name": "stream"},
    "stateful": {"kind": Own, "run_name": "stateful"},
    "limited": {"train_dataset": Noisy(), "lightning": {"limit_train_batches": 5}},
    "evaluation at epochs": {"eval_strategy": "epoch", "eval_dataset": Noisy()},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
    "cyclic": {"optimizers": cyclic},
    "chained": {"optimizers": chained},
    "cosine": {"lr_scheduler_type": "cosine_with_restarts", "warmup_steps": 3},
    "adafactor": {"optim": "adafactor", "train_dataset": Noisy()},
}


SPARED = {"dataloader_num_workers", "eval_strategy", "lr_scheduler_type", "optim", "optimizers"}
"""Options of set-ups that are killed three times."""


def build(folder: Path, setup: dict[str, Any], step: int = 0) -> compat.Trainer:
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 1, "train_dataset": ROWS, **setup}
    if "eval_strategy" in options:
        options.setdefault("eval_dataset", ROWS[:4])
    torch.manual_seed(3)
    model = Regression()
    make = options.pop("optimizers", None)
    if make is not None:
        options["optimizers"] = make(model)
    kind = options.pop("kind", None)
    return trainer(folder, kind, model=model, callbacks=[Killed(step)] if step else [], **options)


def weights(run: compat.Trainer) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in run.model.state_dict().items()}


def logs(run: compat.Trainer) -> list[dict[str, float]]:
    """What was logged, speeds and the sum at the end aside: those are of the last process alone."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(("runtime", "per_second"))}
        for entry in run.state.log_history
        if "train_loss" not in entry
    ]


def finished(folder: Path, setup: dict[str, Any], *kills: int) -> compat.Trainer:
    """A run that is killed after each of some steps, and resumed each time."""
    for step in kills:
        with pytest.raises(KeyboardInterrupt):
            build(folder, setup, step).train(resume_from_checkpoint="auto")
    last = build(folder, setup)
    last.train(resume_from_checkpoint="auto")
    return last


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
def test_resumed_is_undisturbed(tmp_path: Path, setup: dict[str, Any]) -> None:
    # After each step in turn; some of them where a run has processes to start, or where the kind of data is
    # one that others have.
    kills = (1, 5, 8) if SPARED & set(setup) else (1, 2, 3, 4, 5, 6, 7, 9)
    expected = finished(tmp_path / "whole", setup)
    resumed = finished(tmp_path / "killed", setup, *kills)
    assert resumed.state.global_step == 10
    assert weights(resumed) == weights(expected)
    assert logs(resumed) == logs(expected)


def test_a_stateful_loader_replays_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, SETUPS["stateful"], 5).train()
    made: list[Stateful] = []

    class Counted(Own):
        def get_train_dataloader(self) -> Any:
            made.append(super().get_train_dataloader())
            return made[-1]

    build(tmp_path, {**SETUPS["stateful"], "kind": Counted}).train(resume_from_checkpoint="auto")
    assert [loader.drawn for loader in made] == [5]


def test_random_states_are_put_back() -> None:
    def sample() -> tuple[float, float, float, float]:
        values = random.random(), np.random.rand(), np.random.normal()  # noqa: NPY002, S311
        return (*values, float(torch.rand(1)))

    for spend in (np.random.normal, np.random.normal, np.random.rand, lambda: None):
        draws()
        spend()
        state = draws()
        first = sample()
        redraw(state)
        assert sample() == first
