"""Data sets, collators and metrics for the set-ups. Everything is drawn from its own generator."""

from __future__ import annotations

import random
from collections import UserDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from tests.parity.parts.models import CLASSES, VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Row = dict[str, Any]


class Rows(Dataset):
    """A map-style data set over a list."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return dict(self.rows[index])


class NoisyRows(Rows):
    """Rows augmented from the global generators.

    Dropout draws from the same generators, so the moment at which a batch is fetched shows in
    every loss.
    """

    def __getitem__(self, index: int) -> Row:
        row = super().__getitem__(index)
        # The global generators are the point: a script seeds them and a run draws from them.
        noise = torch.randn(4).numpy() + np.random.randn(4) + random.random()  # noqa: NPY002, S311
        row["x"] = (row["x"] + 0.1 * noise).astype(np.float32)
        return row


class Stream(IterableDataset):
    """Rows without a length; every iteration starts afresh."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        return (dict(row) for row in self.rows)


class OneShot(Stream):
    """Rows that can be read once: the second iteration finds nothing."""

    def __iter__(self) -> Iterator[Row]:
        rows, self.rows = self.rows, []
        return (dict(row) for row in rows)


class Epochs(Stream):
    """Rows without a length, in an order of their own for every epoch that is announced."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Announce an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Row]:
        order = np.random.default_rng(self.epoch).permutation(len(self.rows))
        return (dict(self.rows[i]) for i in order)


class EpochRows(Rows):
    """Rows whose values depend on the epoch that was announced."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Announce an epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Row:
        row = super().__getitem__(index)
        return {**row, "x": row["x"] * (1 + self.epoch)}


def regression_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows for `models.Regression`."""
    draw = np.random.default_rng(seed)
    xs = draw.normal(size=(count, 4)).astype(np.float32)
    ys = (xs.sum(axis=1) + 0.1 * draw.normal(size=count)).astype(np.float32)
    return [{"x": x, "labels": y} for x, y in zip(xs, ys, strict=True)]


def regression(count: int = 26, seed: int = 0) -> Dataset:
    """Map-style rows; 26 rows in batches of four make six full batches and one of two."""
    return Rows(regression_rows(count, seed))


def evaluation() -> Dataset:
    """A small regression set with a short last batch."""
    return regression(10, seed=1)


def unlabelled() -> Dataset:
    """The evaluation set without its labels."""
    return Rows([{"x": row["x"]} for row in regression_rows(10, seed=1)])


def noisy() -> Dataset:
    """Regression rows with random augmentation."""
    return NoisyRows(regression_rows(26))


def stream(count: int = 26) -> IterableDataset:
    """Regression rows without a length."""
    return Stream(regression_rows(count))


def one_shot() -> IterableDataset:
    """Regression rows without a length that can be read once."""
    return OneShot(regression_rows(18))


def epochs() -> IterableDataset:
    """Regression rows without a length that follow the epoch."""
    return Epochs(regression_rows(18))


def epoch_rows() -> Dataset:
    """Regression rows that follow the epoch."""
    return EpochRows(regression_rows(18))


def measured_tokens() -> Dataset:
    """A `datasets.Dataset` of token rows with a column for their lengths."""
    import datasets

    rows = [{**row, "size": len(row["input_ids"])} for row in tagged().rows]
    return datasets.Dataset.from_list(rows)


def table(count: int = 26) -> Dataset:
    """A `datasets.Dataset` with columns no model takes."""
    return _rows_of_table(count).with_format("torch")


def _rows_of_table(count: int = 26) -> Dataset:
    import datasets

    rows = [
        {"x": row["x"].tolist(), "labels": float(row["labels"]), "note": str(i), "weight": i}
        for i, row in enumerate(regression_rows(count))
    ]
    return datasets.Dataset.from_list(rows)


def streamed_table() -> IterableDataset:
    """The same table, streamed."""
    # Formatted once it is a stream, as releases below 3.3 have it.
    return _rows_of_table().to_iterable_dataset(num_shards=2).with_format("torch")


def shuffled_stream() -> IterableDataset:
    """The streamed table with a shuffle buffer: its order depends on the epoch set upon it."""
    return streamed_table().shuffle(seed=7, buffer_size=8)


def _tokens(count: int, seed: int, shortest: int, longest: int) -> Iterator[list[int]]:
    draw = np.random.default_rng(seed)
    for _ in range(count):
        size = int(draw.integers(shortest, longest + 1))
        yield draw.integers(3, VOCABULARY, size=size).tolist()


def sentences(count: int = 18, seed: int = 0, shortest: int = 6, longest: int = 6) -> Dataset:
    """Token rows with one class each."""
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": sum(ids) % CLASSES}
        for ids in _tokens(count, seed, shortest, longest)
    ]
    return Rows(rows)


def tagged(count: int = 18, seed: int = 0) -> Dataset:
    """Token rows of uneven length with one class per token."""
    rows = [
        {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [i % CLASSES for i in ids],
        }
        for ids in _tokens(count, seed, 3, 9)
    ]
    return Rows(rows)


def text(count: int = 18, seed: int = 0) -> Dataset:
    """Language-model rows of uneven length: every window counts another number of tokens."""
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}
        for ids in _tokens(count, seed, 3, 9)
    ]
    return Rows(rows)


def pairs(count: int = 14, seed: int = 0) -> Dataset:
    """Source and target rows of uneven length."""
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids[::-1][:5]}
        for ids in _tokens(count, seed, 3, 7)
    ]
    return Rows(rows)


def unlabelled_pairs() -> Dataset:
    """Source rows alone."""
    return Rows([{k: row[k] for k in ("input_ids", "attention_mask")} for row in pairs(6, 1).rows])


def images(count: int = 14, seed: int = 0) -> Dataset:
    """Pictures with one class each."""
    draw = np.random.default_rng(seed)
    pixels = draw.normal(size=(count, 1, 8, 8)).astype(np.float32)
    return Rows([{"pixel_values": p, "labels": i % CLASSES} for i, p in enumerate(pixels)])


def pad(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Collate token rows; labels are padded with -100, all else with zero."""
    filler = {"labels": -100}
    return {
        key: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[key]) for row in rows],
            batch_first=True,
            padding_value=filler.get(key, 0),
        )
        for key in rows[0]
    }


def wrapped(rows: Sequence[Row]) -> UserDict:
    """Collate to a mapping that is no dictionary, as tokenizers return it."""
    return UserDict({key: torch.tensor(np.stack([row[key] for row in rows])) for key in rows[0]})


def tokenizer():
    """A word-level tokenizer made without any file."""
    # ruff: noqa: S106 (its tokens are no secrets)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
    )
