"""A run that is interrupted and resumed, anywhere, against the same run undisturbed: equal to the bit."""

from __future__ import annotations

import logging
import random
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler

import compat
from compat.engine.loader_state import Generators, reachable
from compat.engine.position import Prompted, draws, redraw
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


class Unbatched(IterableDataset):  # type: ignore[type-arg]
    """Makes its batches itself."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from (noisy(ROWS[at : at + 2]) for at in range(0, 14, 2))


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


def seeded(kind: Any) -> Any:
    return torch.Generator().manual_seed(7) if kind is torch else kind(7)


def shuffled(**options: Any) -> Any:
    """A bare loader whose sampler draws from a generator of its own."""
    sampler = torch.utils.data.RandomSampler(ROWS, generator=seeded(torch), **options)
    return DataLoader(Noisy(), batch_size=2, sampler=sampler, collate_fn=noisy)


class OwnNoise(Dataset):  # type: ignore[type-arg]
    """Draws from generators of its own for every sample."""

    def __init__(self) -> None:
        self.generators = {
            "torch": seeded(torch),
            "numpy": seeded(np.random.default_rng),
            "older": seeded(np.random.RandomState),
            "python": seeded(random.Random),
        }

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        own = self.generators
        noise = torch.rand(4, generator=own["torch"]) + own["numpy"].normal()
        noise += own["older"].normal() + own["python"].gauss(0, 1)
        return {**ROWS[index], "x": ROWS[index]["x"] + noise.float()}


def with_own_noise() -> Any:
    """A collator that closes over its generator."""
    generator = seeded(torch)

    def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        return {**batch, "x": batch["x"] * torch.rand(1, generator=generator)}

    return collate


class Lazily:
    """A collator that makes its generator with its first batch."""

    generator: Any = None

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if self.generator is None:
            self.generator = seeded(torch)
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        return {**batch, "x": batch["x"] * torch.rand(1, generator=self.generator)}


class Slotted:
    __slots__ = ("generator",)

    def __init__(self) -> None:
        self.generator = seeded(np.random.default_rng)


class Shift(torch.nn.Module):
    """A transform that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = seeded(torch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(4, generator=self.generator)


GLOBAL = {"generator": seeded(random.Random)}


def from_the_module() -> float:
    return GLOBAL["generator"].random()


class Everywhere(Dataset):  # type: ignore[type-arg]
    """Keeps generators wherever Python has a place for one."""

    of_class = seeded(np.random.RandomState)

    def __init__(self) -> None:
        type(self).of_class = seeded(np.random.RandomState)
        GLOBAL["generator"] = seeded(random.Random)
        self.bound = seeded(random.Random).random
        self.slotted, self.module, self.bits = Slotted(), Shift(), seeded(np.random.PCG64)

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = self.of_class.rand() + self.bound() + self.slotted.generator.random() + self.helped()
        noise += self.bits.random_raw() / 2**64
        return {**ROWS[index], "x": self.module(ROWS[index]["x"]) + noise}

    def helped(self) -> float:
        return from_the_module()


MADE_ANEW: tuple[Any, ...] = (OwnNoise, Everywhere)


class Epochs:
    """A sampler of batches that orders by the epoch it is told, if it is told one."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Iterator[list[int]]:
        order = random.Random(self.epoch).sample(range(14), 14)  # noqa: S311
        yield from (order[at : at + 2] for at in range(0, 14, 2))


class Backwards(DataLoader):  # type: ignore[type-arg]
    """Goes about its batches in its own way."""

    def __iter__(self) -> Any:
        return reversed(list(super().__iter__()))


class Numbers(IterableDataset):  # type: ignore[type-arg]
    """Keeps the state that it has loaded, and begins every pass there."""

    def __init__(self) -> None:
        self.start = {"at": 0}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from ROWS[self.start["at"] :]

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state


class Goes(Numbers):
    """Goes on in each pass where the last one has ended, for ever."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            self.start = {"at": self.start["at"] + 1}
            yield ROWS[self.start["at"] % 14]
            if self.start["at"] % 6 == 0:
                return


class Keeps:
    """A loader whose dataset loads its state when a pass begins."""

    def __init__(self, dataset: Numbers) -> None:
        self.dataset, self.state, self.taken = dataset, None, 0

    def __len__(self) -> int:
        return 7 if type(self.dataset) is Numbers else 3

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if self.state is not None:
            self.dataset.load_state_dict(self.state)
        self.taken, self.state = self.dataset.start["at"] // 2, None
        return self.batches(iter(self.dataset))

    def batches(self, rows: Iterator[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        while pair := [row for _, row in zip(range(2), rows, strict=False)]:
            self.taken += 1
            yield noisy(pair)

    def state_dict(self) -> dict[str, int]:
        return {"at": self.taken * 2}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = state


class Counts:
    """A loader that shuffles each of its passes in another order, and tells within one where it stands."""

    def __init__(self) -> None:
        self.passes, self.at, self.over, self.loaded = 0, 0, False, False

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if not self.loaded:
            self.passes, self.at = self.passes + 1, 0
        self.loaded = self.over = False
        order = random.Random(self.passes).sample(range(14), 14)  # noqa: S311
        while self.at < len(self):
            self.at += 1
            yield noisy([ROWS[index] for index in order[2 * self.at - 2 : 2 * self.at]])
        # As torchdata has it: who has seen the end begins anew.
        self.over = True

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self.passes, "at": self.at, "over": self.over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes, self.at, self.loaded = state["passes"], state["at"], not state["over"]


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
    "shuffled": shuffled,
    "drawn as it goes": lambda: shuffled(replacement=True, num_samples=14),
    "own noise": lambda: DataLoader(OwnNoise(), batch_size=2, collate_fn=with_own_noise()),
    "own noise, workers": lambda: DataLoader(
        ROWS, batch_size=2, shuffle=True, generator=seeded(torch), num_workers=1
    ),
    "persistent workers": lambda: DataLoader(
        ROWS, batch_size=2, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "epochs": lambda: DataLoader(ROWS, batch_sampler=Epochs()),
    "backwards": lambda: Backwards(ROWS, batch_size=2),
    "unbatched": lambda: DataLoader([noisy(ROWS[at : at + 2]) for at in range(0, 14, 2)], batch_size=None),
    "unbatched stream": lambda: DataLoader(Unbatched(), batch_size=None),
    "keeps": lambda: Keeps(Numbers()),
    "goes on": lambda: Keeps(Goes()),
    "counts": Counts,
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


NAMED_ALREADY = ("plain", "stream", "goes on", "counts")

# What differs from a run over plain rows; `optimizers` is called with the model.
SETUPS: dict[str, dict[str, Any]] = {
    "rows": {},
    "dataset": {"train_dataset": Noisy()},
    "collator": {"data_collator": noisy},
    "accumulation": {"train_dataset": Noisy(), "gradient_accumulation_steps": 3},
    "sampler": {"kind": Unordered},
    "workers": {"dataloader_num_workers": 2, "kind": Unordered},
    "persistent workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    "persistent workers, no order of their own": {
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "kind": Unordered,
    },
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
    **{f"own {name}": {"kind": Own, "run_name": name} for name in LOADERS if name not in NAMED_ALREADY},
    "own rows": {"train_dataset": OwnNoise()},
    "own collator": {"data_collator": with_own_noise},
    "own collator, later": {"data_collator": Lazily},
    "own everywhere": {"train_dataset": Everywhere()},
    "own rows, accumulation": {"train_dataset": OwnNoise(), "gradient_accumulation_steps": 3},
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
    # Made for each run: its generators are drawn from.
    if isinstance(options.get("train_dataset"), MADE_ANEW):
        options["train_dataset"] = type(options["train_dataset"])()
    if options.get("data_collator") in (with_own_noise, Lazily):
        options["data_collator"] = options["data_collator"]()
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


class LeavesEpoch(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_epoch_stop = state.global_step in (4, 7)


@pytest.mark.parametrize("kill", [3, 4, 5, 7])
def test_the_rest_of_an_epoch_that_was_left_is_left_out(tmp_path: Path, kill: int) -> None:
    def run(folder: Path, *more: Any) -> compat.Trainer:
        ours = build(folder, {})
        for callback in (LeavesEpoch(), *more):
            ours.add_callback(callback)
        ours.train(resume_from_checkpoint="auto")
        return ours

    expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Killed(kill))
    assert weights(run(tmp_path / "killed")) == weights(expected)


@pytest.mark.parametrize("kills", [(2, 7), (2, 7, 8), (5, 7, 9)])
def test_a_stateful_loader_that_was_resumed_is_saved_at_its_pass_end(
    tmp_path: Path, kills: tuple[int, ...]
) -> None:
    setup = {"kind": Own, "run_name": "counts"}
    expected = finished(tmp_path / "whole", setup)
    assert weights(finished(tmp_path / "killed", setup, *kills)) == weights(expected)


@pytest.mark.parametrize("kills", [(1,), (2, 4), (3,), (5, 6, 8), (9,)])
def test_a_pass_that_goes_on_where_the_last_one_ended(tmp_path: Path, kills: tuple[int, ...]) -> None:
    setup = {"kind": Own, "run_name": "goes on"}
    expected = finished(tmp_path / "whole", setup)
    assert weights(finished(tmp_path / "killed", setup, *kills)) == weights(expected)


def test_a_stateful_loader_replays_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, SETUPS["own stateful"], 5).train()
    made: list[Stateful] = []

    class Counted(Own):
        def get_train_dataloader(self) -> Any:
            made.append(super().get_train_dataloader())
            return made[-1]

    build(tmp_path, {**SETUPS["own stateful"], "kind": Counted}).train(resume_from_checkpoint="auto")
    assert [loader.drawn for loader in made] == [5]


def test_random_states_are_put_back() -> None:
    def sample() -> tuple[float, float, float, float]:
        values = random.random(), np.random.rand(), np.random.normal()  # noqa: NPY002, S311
        return (*values, float(torch.rand(1)))

    for spend in (np.random.normal, np.random.normal, np.random.rand, lambda: None):
        draws(Generators())
        spend()
        state = draws(Generators())
        first = sample()
        redraw(state, Generators())
        assert sample() == first


@pytest.mark.parametrize("count", [3, 5, 6, 7, 20])
def test_something_is_done_right_before_certain_batches(count: int) -> None:
    """Also before the one that would come after the last, and not before those that would come later."""
    told: list[Any] = []

    def batches() -> Any:
        for index in range(count):
            told.append(index)
            yield index

    before = {index: lambda index=index: told.append(f"before {index}") for index in (5, 7)}
    found = list(Prompted(batches(), before, skip=4))
    expected = [
        part for index in range(count) for part in ([f"before {index}"] * (index in before) + [index])
    ]
    assert found == list(range(4, count))
    assert told == expected + [f"before {count}"] * (count in before)


def test_batches_that_are_left_out_take_no_step_of_pythons() -> None:
    lines = 0

    def count(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    skipping = Prompted(range(100_000), {90_000: lambda: None}, skip=90_000)
    assert len(skipping) == 10_000
    batches, before = iter(skipping), sys.gettrace()
    sys.settrace(count)
    try:
        first = next(batches)
    finally:
        sys.settrace(before)
    assert first == 90_000
    assert lines < 100


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("skip", [0, 2, 3, 4, 9])
def test_rows_of_indices_are_left_out_as_batches_are(skip: int, drop_last: bool) -> None:
    def sampler() -> BatchSampler:
        return BatchSampler(
            RandomSampler(range(10), generator=torch.Generator().manual_seed(3)), 3, drop_last
        )

    told: list[int] = []
    before = {index: lambda index=index: told.append(index) for index in (skip, skip + 1)}
    assert list(Prompted(sampler(), before, skip)) == list(sampler())[skip:]
    count = len(sampler())
    assert told == [index for index in (skip, skip + 1) if index <= count]


def test_a_search_does_not_follow_loggers() -> None:
    # HF's collator holds one, from which each other of the process can be reached.
    held = types.SimpleNamespace(
        dataset=[], logger=logging.getLogger("transformers"), own=np.random.default_rng(0)
    )
    assert not [path for path, _ in reachable(held) if path.startswith("logger")]
    assert list(Generators(held).states()) == ["own"]
