"""What is loaded, in which order, by whom."""

from __future__ import annotations

from typing import Any

import datasets

from tests import small
from tests.effects import parts
from tests.effects.effect import Bench, Effect, differ


def sizes(bench: Bench) -> list[int]:
    """The sizes of the batches of a training on five rows."""
    return bench.trained(model=parts.Telling(), train_dataset=small.rows(5)).model.sizes


def evaluated_sizes(bench: Bench) -> list[int]:
    """The sizes of the batches of an evaluation on five rows."""
    trainer = bench.trainer(model=parts.Telling())
    trainer.evaluate()
    return trainer.model.sizes


def order(bench: Bench) -> list[int]:
    """The rows in the order that the model saw them in."""
    return bench.trained(model=parts.Telling(), train_dataset=parts.numbered()).model.seen


def lengths(bench: Bench) -> list[int]:
    """The lengths of the rows in the order that the model saw them in."""
    rows = [row for n in range(16) for row in parts.words(1, length=3 + 5 * n % 16)]
    return [length for _, length in bench.trained(model=parts.Words(), train_dataset=rows).model.sizes]


class Measured(parts.Words):
    """Takes what rows say of their length, so that the column is kept."""

    def forward(
        self, input_ids: Any, attention_mask: Any = None, labels: Any = None, said: Any = None
    ) -> Any:
        return super().forward(input_ids, attention_mask, labels)


def numbers(bench: Bench) -> list[int]:
    """The numbers of rows that are all of one length, but say otherwise."""
    rows = [{"input_ids": [number, 1, 2], "labels": number % 2, "said": 16 - number} for number in range(16)]
    return bench.trained(model=Measured(), train_dataset=datasets.Dataset.from_list(rows)).model.seen


def falls_in_fours(values: list[int]) -> bool:
    """Whether each four of sixteen fall, but that the greatest of all has been moved to the front."""
    threes = [values[n + 1 : n + 4] for n in range(0, 16, 4)]
    return values[0] == max(values) and all(three == sorted(three, reverse=True) for three in threes)


def resumed_with(bench: Bench) -> str:
    """Which half of an interrupted epoch a resumed run trains on."""
    whole = order(bench)
    rest = bench.trainer(model=parts.Telling(), train_dataset=parts.numbered())
    rest.train(resume_from_checkpoint="out/checkpoint-2")
    return {str(whole[:4]): "first", str(whole[4:]): "second"}[str(rest.model.seen)]


class Hungry(parts.Telling):
    """Has memory for two rows."""

    def forward(self, x: Any, labels: Any = None) -> dict[str, Any]:
        out = super().forward(x, labels)
        if len(x) > 2:
            msg = "CUDA out of memory."
            raise RuntimeError(msg)
        return out


def sizes_until_it_fits(bench: Bench) -> list[int]:
    """The sizes of the batches of a run on a device with little memory; it may end early."""
    model = Hungry()
    trainer = bench.trainer(model=model, train_dataset=small.rows(4))
    try:
        trainer.train()
    except RuntimeError:
        return [*model.sizes, 0]
    return model.sizes


def worker_processes(bench: Bench) -> int:
    """How many processes have loaded the data, epoch for epoch, other than the one that trains."""
    seen = set(bench.trained(model=parts.Telling(), train_dataset=parts.Workers()).model.seen)
    return len(seen - {-1})


def first_rows(bench: Bench) -> set[int]:
    """The rows of the first batch, where the worker that loads it is slow."""
    trainer = bench.trainer(train_dataset=parts.Slow(), model=parts.Telling())
    trainer.train()
    return set(trainer.model.seen[:2])


def loader(name: str) -> Any:
    """An attribute of the dataloader that trains."""
    return lambda bench: getattr(bench.trained().callback_handler.train_dataloader, name)


def pins(bench: Bench) -> bool:
    """Whether batches are to be pinned."""
    return bench.trainer().get_train_dataloader().pin_memory


def start_method(bench: Bench) -> str | None:
    """How the workers of the dataloader would be started."""
    context = bench.trainer().get_train_dataloader().multiprocessing_context
    return context and context.get_start_method()


def columns(bench: Bench) -> set[str]:
    """What the model is called with."""

    class Curious(small.Regression):
        def forward(self, x: Any, labels: Any = None, **others: Any) -> dict[str, Any]:
            got.update(others)
            return super().forward(x, labels)

    got: set[str] = set()
    rows = [{**row, "note": number} for number, row in enumerate(small.rows(4))]
    bench.trained(model=Curious(), train_dataset=rows)
    return got - {"num_items_in_batch"}


def stream_loader(bench: Bench) -> tuple[str, bool]:
    """Who hands out the batches of a stream, and whether it splits what it is given."""
    trainer = bench.trained(train_dataset=parts.Stream())
    return type(trainer.callback_handler.train_dataloader).__name__, trainer.accelerator.split_batches


def batches(bench: Bench) -> int:
    """How many batches two steps take."""
    return len(bench.trained(model=parts.Telling()).model.sizes)


ONE_EPOCH = {"max_steps": -1, "num_train_epochs": 1}
BY_LENGTH = {**ONE_EPOCH, "per_device_train_batch_size": 1}
GROUPED = {**BY_LENGTH, "train_sampling_strategy": "group_by_length"}
INTERRUPTED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
LARGE = {"per_device_train_batch_size": 4, "max_steps": 1}
TWO_EPOCHS = {"max_steps": -1, "num_train_epochs": 2, "dataloader_num_workers": 1}


def sorts(without: list[int], with_it: list[int]) -> bool:
    """Whether the rows are grouped with the argument alone."""
    return falls_in_fours(with_it) and not falls_in_fours(without)


DATA = (
    Effect("per_device_train_batch_size", 3, sizes, ([5], [3, 2]), base=ONE_EPOCH),
    Effect(
        "per_gpu_train_batch_size",
        3,
        sizes,
        ([5], [3, 2]),
        base={**ONE_EPOCH, "per_device_train_batch_size": 8},
        replaced_by="per_device_train_batch_size",
        warns=True,
    ),
    Effect("per_device_eval_batch_size", 3, evaluated_sizes, ([5], [3, 2])),
    Effect(
        "per_gpu_eval_batch_size",
        3,
        evaluated_sizes,
        ([5], [3, 2]),
        replaced_by="per_device_eval_batch_size",
        warns=True,
    ),
    Effect("dataloader_drop_last", True, sizes, ([2, 2, 1], [2, 2]), base=ONE_EPOCH),
    Effect("data_seed", 7, order, differ),
    Effect("train_sampling_strategy", "sequential", order, lambda _, it: it == [0, 1, 2, 3], note="in-turn"),
    Effect("train_sampling_strategy", "group_by_length", lengths, sorts, base=BY_LENGTH),
    Effect(
        "group_by_length",
        True,
        lengths,
        sorts,
        base=BY_LENGTH,
        replaced_by="train_sampling_strategy",
        warns=True,
    ),
    Effect(
        "length_column_name",
        "said",
        numbers,
        lambda _, it: falls_in_fours([-number for number in it]),
        base=GROUPED,
    ),
    Effect("ignore_data_skip", True, resumed_with, ("second", "first"), base=INTERRUPTED),
    Effect(
        "auto_find_batch_size",
        True,
        sizes_until_it_fits,
        lambda without, it: without == [4, 0] and it[0] == 4 and it[-1] <= 2,
        base=LARGE,
    ),
    Effect("dataloader_num_workers", 2, worker_processes, (0, 2), base={}),
    Effect("dataloader_persistent_workers", True, worker_processes, (2, 1), base=TWO_EPOCHS),
    Effect(
        "dataloader_prefetch_factor", 5, loader("prefetch_factor"), (2, 5), base={"dataloader_num_workers": 1}
    ),
    Effect("dataloader_pin_memory", False, pins, (True, False), base={"use_cpu": False}),
    Effect(
        "dataloader_multiprocessing_context",
        "spawn",
        start_method,
        (None, "spawn"),
        base={"dataloader_num_workers": 1},
    ),
    Effect(
        "dataloader_in_order",
        False,
        first_rows,
        ({0, 1}, {2, 3}),
        base={"dataloader_num_workers": 2, "train_sampling_strategy": "sequential"},
    ),
    Effect("remove_unused_columns", False, columns, (set(), {"note"})),
    Effect("accelerator_config", {"gradient_accumulation_kwargs": {"num_steps": 3}}, batches, (2, 6)),
    Effect(
        "dispatch_batches",
        False,
        stream_loader,
        (("DataLoaderDispatcher", False), ("DataLoaderShard", False)),
        replaced_by="accelerator_config",
        warns=True,
    ),
    Effect(
        "split_batches",
        True,
        stream_loader,
        (("DataLoaderDispatcher", False), ("DataLoaderDispatcher", True)),
        replaced_by="accelerator_config",
        warns=True,
    ),
)
