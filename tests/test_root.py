from __future__ import annotations

import subprocess
import sys

import pytest
import transformers

import compat


def test_import_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, compat; "
        "print(sorted({'torch', 'transformers', 'lightning', 'accelerate'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_public_name_can_be_fetched() -> None:
    for name in compat.__all__:
        assert getattr(compat, name) is not None


def test_our_classes_are_transformers_classes() -> None:
    assert issubclass(compat.Trainer, transformers.Trainer)
    assert issubclass(compat.Seq2SeqTrainer, (compat.Trainer, transformers.Seq2SeqTrainer))
    assert issubclass(compat.TrainingArguments, transformers.TrainingArguments)
    assert issubclass(compat.Seq2SeqTrainingArguments, transformers.Seq2SeqTrainingArguments)
    assert issubclass(compat.Seq2SeqTrainingArguments, compat.TrainingArguments)


def test_names_that_are_not_ours_are_transformers() -> None:
    assert compat.TrainerCallback is transformers.TrainerCallback
    assert compat.BertConfig is transformers.BertConfig


def test_a_misspelt_name_says_so() -> None:
    with pytest.raises(AttributeError, match="neither compat nor transformers has the name 'Trianer'"):
        _ = compat.Trianer
