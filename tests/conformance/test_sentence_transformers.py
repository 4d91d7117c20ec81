"""Names and signatures of Sentence Transformers' trainers of two generations, as data, against ours."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import compat
import compat.sentence_transformers as ours
from tests.conformance.signatures import accepted, parameters

pytest.importorskip("sentence_transformers", reason="needs the extra [sentence-transformers]")

SURFACE = Path(__file__).parent / "surface"
CLASSES = [
    ("5.1.0", "SentenceTransformerTrainer"),
    ("5.1.0", "CrossEncoderTrainer"),
    ("6.2.0", "BaseTrainer"),
]
ARGUMENTS = [
    ("5.1.0", "SentenceTransformerTrainingArguments"),
    ("5.1.0", "CrossEncoderTrainingArguments"),
    ("6.2.0", "BaseTrainingArguments"),
]
RENAMED = {"tokenizer": "processing_class"}
"""What the library itself takes by an older name, without showing it."""


def surface(generation: str, name: str) -> dict[str, Any]:
    return json.loads((SURFACE / f"sentence-transformers-{generation}.json").read_text())[name]


@pytest.mark.parametrize(("generation", "name"), CLASSES)
def test_every_method_takes_every_parameter(generation: str, name: str) -> None:
    kind, lacking = getattr(ours, name), []
    methods = surface(generation, name)["methods"]
    for method, signature in methods.items():
        if inspect.getattr_static(kind, method, None) is None:
            lacking.append(method)
            continue
        had = accepted(kind, method)[0]
        wanted = {RENAMED.get(parameter, parameter) for parameter in parameters(signature)[0]}
        lacking += [f"{method}({parameter})" for parameter in wanted - had]
    assert lacking == []
    assert len(methods) >= 3


@pytest.mark.parametrize(("generation", "name"), ARGUMENTS)
def test_every_field_is_there(generation: str, name: str) -> None:
    kind = getattr(ours, name)
    fields = {field.name for field in dataclasses.fields(kind)}
    assert {field["name"] for field in surface(generation, name)["fields"]} - fields == set()
    # By the names of every generation of transformers, too.
    assert {field.name for field in dataclasses.fields(compat.TrainingArguments)} <= fields
