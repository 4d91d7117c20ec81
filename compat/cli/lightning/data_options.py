"""Datasets from files, folders and names, prepared for a transformers model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.arguments.checks import nearest
from compat.errors import ArgumentError
from compat.modules.hf_datamodule import HFDataModule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.data.data_collator import DataCollator

READERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
"""File extension → the reader of `datasets`."""

SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "eval"),
    "test": ("test",),
    "predict": ("predict",),
}
"""Role → the names of splits with this role."""

NO_LABEL = -100


class DataFiles(HFDataModule):
    """Data from files, folders of `datasets` or names on the Hub, tokenized for the model.

    Args:
        train: a file (.csv, .tsv, .json, .jsonl, .parquet, .txt), a folder of `save_to_disk`, or a name.
        validation: the same, to evaluate on.
        test: the same, for `test`, and for `predict` where that is not given.
        predict: the same, for `predict`; needs no labels.
        dataset: a folder or name that has all splits, by their own names.
        validation_split: share of the training rows, or their number, that is kept to evaluate on.
        text_column: the column with the text.
        text_pair_column: the column with a second text.
        label_column: the column with the label; with the target text for a sequence-to-sequence model.
        tokenizer: folder or name; the model's where it is not given.
        max_length: tokens that a text is cut to; the model's own limit where it is not given.
        num_proc: processes that tokenize.
    """

    def __init__(  # noqa: PLR0917 (never called: the signature is the command line's)
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        dataset: str | None = None,
        validation_split: float | None = None,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        num_proc: int | None = None,
    ) -> None:
        """Made by `Source.build`, which knows the model."""
        raise NotImplementedError


@dataclass
class Source:
    """The command-line options of the data.

    Attributes:
        options: the arguments of `DataFiles`.
        seed: the seed of the split into training and validation rows.
    """

    options: dict[str, Any]
    seed: int

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.options:
            raise AttributeError(name)
        return self.options[name]

    @property
    def is_empty(self) -> bool:
        """Whether no data is given."""
        return not any(self.options[role] for role in (*SPLITS, "dataset"))

    def read(self) -> dict[str, Any]:
        """Load the rows of each role.

        Raises:
            ArgumentError: a file or a split does not exist.
        """
        found = {}
        if self.dataset:
            splits = _load(self.dataset, "dataset")
            splits = splits if hasattr(splits, "keys") else {"train": splits}
            found = {
                role: splits[name] for role, names in SPLITS.items() for name in names[::-1] if name in splits
            }
        for role in SPLITS:
            if self.options[role]:
                found[role] = _one(_load(self.options[role], role), self.options[role], role)
        share = self.validation_split
        if share and "train" in found:
            if "validation" in found:
                msg = (
                    f"`data.validation_split={share}`: there are rows to evaluate on already. Leave one out."
                )
                raise ArgumentError(msg)
            size = int(share) if share >= 1 else share
            parts = found["train"].train_test_split(size, seed=self.seed)
            found |= {"train": parts["train"], "validation": parts["test"]}
        return found


def _load(place: str, role: str) -> Dataset | DatasetDict:
    import datasets

    if os.path.isdir(place):
        return datasets.load_from_disk(place)
    reader = READERS.get(os.path.splitext(place)[1].lower())
    if os.path.isfile(place):
        if reader is None:
            msg = f"`data.{role}={place}`: not a kind of file that is read. Give {', '.join(READERS)}."
            raise ArgumentError(msg)
        options = {"sep": "\t"} if place.endswith(".tsv") else {}
        return datasets.load_dataset(reader, data_files={"train": place}, split="train", **options)
    if reader is not None or os.path.isabs(place):
        msg = f"`data.{role}={place}`: there is no such file. Give the path of one, from {os.getcwd()}."
        raise ArgumentError(msg)
    try:
        return datasets.load_dataset(place)
    except Exception as error:
        msg = f"`data.{role}={place}`: no file, no folder, and no dataset to be had by that name ({error})."
        raise ArgumentError(msg) from error


def _one(loaded: Dataset | DatasetDict, place: str, role: str) -> Dataset:
    """Return the split of a role."""
    if not hasattr(loaded, "keys"):
        return loaded
    for name in SPLITS[role]:
        if name in loaded:
            return loaded[name]
    msg = f"`data.{role}={place}`: it has no such split. There is {', '.join(loaded)}."
    raise ArgumentError(msg)


def column(source: Source, rows: Dataset, option: str, guesses: tuple[str, ...]) -> str:
    """Return the name of a column.

    Args:
        source: the command-line options.
        rows: a dataset.
        option: the option that names the column.
        guesses: the names to try if the option is not given.

    Raises:
        ArgumentError: there is no such column; the error lists the existing ones.
    """
    given, names = source.options[option], list(rows.column_names)
    there = f"There are the columns {', '.join(names)}."
    if given is not None and given not in names:
        msg = f"`data.{option}={given}`: there is no such column. {there} {nearest(given, names)}".rstrip()
        raise ArgumentError(msg)
    found: str | None = given or next((name for name in guesses if name in names), None)
    if found is None:
        msg = f"`data.{option}`: not given, and none is called {' or '.join(guesses)}. {there} Name one."
        raise ArgumentError(msg)
    return found


def text_column(source: Source, rows: Dataset, option: str, guesses: tuple[str, ...]) -> str:
    """Return the name of a column that contains text.

    Raises:
        ArgumentError: as in `column`, or the column does not contain text.
    """
    name = column(source, rows, option, guesses)
    kind = getattr(rows.features[name], "dtype", "lists")
    if "string" not in kind:
        texts = [each for each, feature in rows.features.items() if "string" in getattr(feature, "dtype", "")]
        msg = f"`data.{option}={name}`: it holds {kind}, not text. Text is in {', '.join(texts) or 'none'}."
        raise ArgumentError(msg)
    return name


TEXTS = ("text", "sentence", "sentence1", "premise", "question", "document", "article", "content")
LABELS = ("label", "labels", "target", "class")


@dataclass
class Labels:
    """The labels of a classification.

    Attributes:
        names: the names of the labels, in the order of their indices; empty for a regression.
        is_regression: whether the labels are numbers to predict.
    """

    names: list[str]
    is_regression: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The entries of a model's configuration for these labels."""
        if self.is_regression:
            return {"num_labels": 1, "problem_type": "regression"}
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
        }

    def number(self, value: Any, place: str) -> int | float:
        """Convert a label to the number that the model takes.

        Raises:
            ArgumentError: the label is not one of those used in training.
        """
        if value is None:
            return NO_LABEL
        if self.is_regression:
            return float(value)
        if isinstance(value, int) and not isinstance(value, bool) and str(value) not in self.names:
            if 0 <= value < len(self.names):
                return value
        elif str(value) in self.names:
            return self.names.index(str(value))
        msg = f"`data.label_column={place}`: {value!r} is no label of the model's. It has {self._known()}."
        raise ArgumentError(msg)

    def _known(self) -> str:
        few = 10
        more = ", …" if len(self.names) > few else ""
        return ", ".join(self.names[:few]) + more

    @classmethod
    def of(cls, rows: Dataset, name: str) -> Labels:
        """Find the labels in a column."""
        feature = rows.features[name]
        if hasattr(feature, "names"):
            return cls(list(feature.names))
        values = {value for value in rows[name] if value is not None}
        if values and all(isinstance(value, float) for value in values):
            return cls([], is_regression=True)
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        if whole and values and min(values) >= 0 and max(values) < 2 * len(values):
            return cls([str(number) for number in range(max(values) + 1)])
        return cls([str(value) for value in sorted(values)])


def classified(
    source: Source, rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Labels, *, needs_labels: bool
) -> Dataset:
    """Prepare rows for a model that classifies whole texts."""
    text = text_column(source, rows, "text_column", TEXTS)
    pair = text_column(source, rows, "text_pair_column", ()) if source.text_pair_column else None
    label = column(source, rows, "label_column", LABELS) if needs_labels else None

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [batch[text], *([batch[pair]] if pair else [])]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=source.max_length))
        if label is not None:
            encoded["labels"] = [labels.number(value, label) for value in batch[label]]
        return encoded

    return _mapped(rows, encode, source)


def written(source: Source, rows: Dataset, tokenizer: PreTrainedTokenizerBase, **_: object) -> Dataset:
    """Prepare rows for a language model: each text separately, truncated to `max_length`."""
    text = text_column(source, rows, "text_column", TEXTS)

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        return dict(tokenizer(batch[text], truncation=True, max_length=source.max_length))

    return _mapped(rows, encode, source)


def translated(
    source: Source, rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, needs_labels: bool, **_: object
) -> Dataset:
    """Prepare rows for a sequence-to-sequence model."""
    text = text_column(source, rows, "text_column", ("text", "source", "document", "article"))
    target = (
        text_column(source, rows, "label_column", ("target", "summary", "label")) if needs_labels else None
    )

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(tokenizer(batch[text], truncation=True, max_length=source.max_length))
        if target is not None:
            targets = tokenizer(text_target=batch[target], truncation=True, max_length=source.max_length)
            encoded["labels"] = targets["input_ids"]
        return encoded

    return _mapped(rows, encode, source)


def _mapped(rows: Dataset, encode: Callable[..., Any], source: Source) -> Dataset:
    if "input_ids" in rows.column_names:
        # Already tokenized.
        return rows
    return rows.map(encode, batched=True, remove_columns=rows.column_names, num_proc=source.num_proc)


TASKS: dict[str, Callable[..., Any]] = {
    "ForSequenceClassification": classified,
    "ForCausalLM": written,
    "LMHeadModel": written,
    "ForMaskedLM": written,
    "ForSeq2SeqLM": translated,
    "ForConditionalGeneration": translated,
}
"""Suffix of a model class → the function that prepares its rows."""


def task_of(name: str) -> str:
    """Return the suffix of a class name that identifies its task.

    Raises:
        ArgumentError: there is none for this model class.
    """
    for ending in TASKS:
        if name.endswith(ending):
            return ending
    msg = (
        f"`model.auto={name}`: data from files is prepared for {', '.join(sorted(TASKS))}. "
        "Give a data module of your own by `--data.class_path`."
    )
    raise ArgumentError(msg)


def collator_of(task: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> DataCollator | None:
    """Return the collator of a task; None for HF's default, which pads."""
    import transformers

    if TASKS[task] is written:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return transformers.DataCollatorForLanguageModeling(tokenizer, mlm=task == "ForMaskedLM")
    if TASKS[task] is translated:
        return WithoutNone(transformers.DataCollatorForSeq2Seq(tokenizer, model))
    return None


@dataclass
class WithoutNone:
    """A collator whose None values are removed: HF treats labels that are None as labels.

    Attributes:
        collator: the collator.
    """

    collator: Callable[..., Any]

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Make a batch."""
        return {name: value for name, value in self.collator(rows).items() if value is not None}
