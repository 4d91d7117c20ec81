from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers

import compat
import compat.sentence_transformers as ours
from compat.errors import MissingLibraryError
from compat.rebasing import ORIGINAL
from compat.sentence_transformers.faces import face
from compat.translate import Kind
from compat.upstream.environment import contained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

library = pytest.importorskip("sentence_transformers", reason="needs the extra [sentence-transformers]")

NAMES = (
    "SentenceTransformerTrainer",
    "SentenceTransformerTrainingArguments",
    "CrossEncoderTrainer",
    "CrossEncoderTrainingArguments",
    "SparseEncoderTrainer",
    "SparseEncoderTrainingArguments",
)


@pytest.fixture(autouse=True)
def _contained() -> Iterator[None]:
    with contained():
        yield


def encoder() -> Any:
    """A table of four words."""
    words = {"[UNK]": 0, "cat": 1, "dog": 2, "sat": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 (a word)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    static = importlib.import_module("sentence_transformers.sentence_transformer.modules").StaticEmbedding
    return library.SentenceTransformer(modules=[static(tokenizer, embedding_dim=4)], device="cpu")


def pairs() -> Dataset:
    return Dataset.from_dict({"anchor": ["cat", "dog sat"], "positive": ["cat sat", "dog"]})


def trainer(folder: Path, **options: Any) -> Any:
    args = ours.SentenceTransformerTrainingArguments(str(folder), use_cpu=True, report_to=[], **options)
    data = DatasetDict(pets=pairs(), more=pairs())
    return ours.SentenceTransformerTrainer(encoder(), args, train_dataset=data)


@pytest.mark.parametrize("name", [*NAMES, "BaseTrainer", "BaseTrainingArguments"])
def test_each_class_is_theirs_and_ours(name: str) -> None:
    found = getattr(ours, name)
    theirs = vars(found)[ORIGINAL]
    base = compat.Trainer if name.endswith("Trainer") else compat.TrainingArguments
    assert issubclass(found, theirs)
    assert issubclass(found, base)
    assert not issubclass(theirs, base)
    assert (found.__name__, found.__module__, found.__doc__) == (name, theirs.__module__, theirs.__doc__)
    assert getattr(ours, name) is found
    assert pickle.loads(pickle.dumps(found)) is found  # noqa: S301 (made here)
    assert issubclass(theirs, found)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("Trainer")])
def test_a_constructor_shows_its_own_signature(name: str) -> None:
    found = getattr(ours, name)
    assert inspect.signature(found) == inspect.signature(vars(found)[ORIGINAL])


def test_other_names_are_the_library_s_own() -> None:
    from compat.sentence_transformers import SentenceTransformer, losses, util

    assert SentenceTransformer is library.SentenceTransformer
    assert losses is importlib.import_module("sentence_transformers.sentence_transformer.losses")
    assert util is importlib.import_module("sentence_transformers.util")
    assert set(NAMES) <= set(dir(ours))


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match=r"has no name 'SentenceTrainer'\. Check the spelling"):
        _ = ours.SentenceTrainer
    assert not hasattr(ours, "_private")


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    face.cache_clear()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        MissingLibraryError, match=r"pip install 'lightning-hf-compat\[sentence-transformers\]'"
    ):
        face("SentenceTransformerTrainer")


def test_their_arguments_are_told_in_the_plan(tmp_path: Path) -> None:
    made = trainer(tmp_path, prompts={"pets": "about pets: "}, learning_rate_mapping={"embedding": 0.5}).plan
    own = {s.field: s.changed for s in made.settings if s.kind is Kind.LIBRARY}
    theirs = {field.name for field in dataclasses.fields(vars(ours.BaseTrainingArguments)[ORIGINAL])}
    inherited = {field.name for field in dataclasses.fields(compat.TrainingArguments)}
    assert own.keys() == theirs - inherited
    assert {name for name, changed in own.items() if changed} == {"prompts", "learning_rate_mapping"}


def test_arguments_by_old_names(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="evaluation_strategy"):
        args = ours.SentenceTransformerTrainingArguments(
            str(tmp_path), use_cpu=True, evaluation_strategy="epoch", batch_sampler="no_duplicates"
        )
    assert (args.eval_strategy, args.batch_sampler.value) == ("epoch", "no_duplicates")


def test_prompts_and_routes_are_taken_as_in_5_1(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    data = DatasetDict(pets=pairs())
    assert made.maybe_add_dataset_name_column(data)["pets"][0].keys() == {"anchor", "positive"}
    prompts = {"pets": "about pets: "}
    named = made.maybe_add_dataset_name_column(DatasetDict(pets=pairs()), prompts=prompts)
    assert named["pets"][:1]["dataset_name"] == ["pets"]
    named = made.preprocess_dataset(DatasetDict(pets=pairs()), prompts=prompts, dataset_name="train")
    assert named["pets"][:1]["dataset_name"] == ["pets"]
    assert made.args.prompts is None


def test_the_tokenizer_is_taken_by_its_older_name(tmp_path: Path) -> None:
    model = encoder()
    args = ours.SentenceTransformerTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    made = ours.SentenceTransformerTrainer(model, args, train_dataset=pairs(), tokenizer=model.tokenizer)
    assert made.processing_class is model.tokenizer


def test_what_was_made_under_install_stays_ours(tmp_path: Path) -> None:
    face.cache_clear()
    compat.install()
    try:
        found = face("SentenceTransformerTrainer")
        assert issubclass(library.SentenceTransformerTrainer, compat.Trainer)
    finally:
        compat.uninstall()
        face.cache_clear()
    assert not issubclass(library.SentenceTransformerTrainer, compat.Trainer)
    assert issubclass(found, compat.Trainer)
    assert transformers.Trainer not in found.__bases__
