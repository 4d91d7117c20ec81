"""Names and signatures of `transformers.Trainer` of three generations, as data, against ours."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers

import compat
from tests.conformance.signatures import accepted, parameters

SURFACE = Path(__file__).parent / "surface"
GENERATIONS = ("4.37.2", "4.53.1", "5.23.0")
CLASSES = ("Trainer", "Seq2SeqTrainer", "TrainerCallback")
RECORDS = ("TrainerState", "TrainerControl")
INSTALLED = transformers.__version__.partition(".")[0]

LACKING = {
    "4": {
        ("TrainerCallback", "on_push_begin"): "the base class is HF's own; callbacks that have it are called",
    },
    "5": {},
}
"""What ours does not have, by the generation of transformers that is installed, and why."""


def surface(generation: str, name: str) -> dict[str, Any]:
    return json.loads((SURFACE / f"transformers-{generation}.json").read_text())[name]


def lacking(generation: str, name: str) -> set[tuple[str, str]]:
    """Methods, and `method(parameter)`, of a generation's class that ours lacks."""
    ours, found = getattr(compat, name), set()
    for method, signature in surface(generation, name)["methods"].items():
        attribute = inspect.getattr_static(ours, method, None)
        if attribute is None or isinstance(attribute, property) != (signature == "property"):
            found.add((name, method))
        elif signature != "property":
            wanted, had = parameters(signature), accepted(ours, method)
            missing = (wanted[0] - had[0]) | (wanted[1] - had[1])
            found |= {(name, f"{method}({parameter})") for parameter in missing}
    return found


def test_the_surface_is_there() -> None:
    sizes = {g: [len(surface(g, name)["methods"]) for name in CLASSES] for g in GENERATIONS}
    assert sizes == {"4.37.2": [43, 5, 13], "4.53.1": [51, 5, 15], "5.23.0": [45, 5, 16]}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_method_takes_every_parameter(generation: str, name: str) -> None:
    assert lacking(generation, name) <= set(LACKING[INSTALLED])


def test_what_is_said_to_be_lacking_is() -> None:
    found = set().union(*(lacking(g, name) for g in GENERATIONS for name in CLASSES))
    assert found == set(LACKING[INSTALLED])


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", RECORDS)
def test_every_field_is_there(generation: str, name: str) -> None:
    ours = getattr(compat, name)
    wanted = {field["name"] for field in surface(generation, name)["fields"]}
    assert wanted - {field.name for field in fields(ours)} == set()
    assert wanted - accepted(ours, "__init__")[0] == set()


@pytest.mark.parametrize("name", ["Trainer", "Seq2SeqTrainer"])
def test_the_constructor_shows_the_installed_signature_and_tokenizer(name: str) -> None:
    theirs = inspect.signature(getattr(transformers, name).__init__).parameters
    ours = dict(inspect.signature(getattr(compat, name).__init__).parameters)
    assert ours.pop("tokenizer").default is None
    assert ours == dict(theirs)


@pytest.mark.parametrize("name", ["Trainer", "Seq2SeqTrainer"])
def test_what_the_installed_release_has_is_at_most_wrapped(name: str) -> None:
    theirs, ours = getattr(transformers, name), getattr(compat, name)
    assert issubclass(ours, theirs)
    lacked = next(c for c in ours.__mro__ if c.__name__ == "LegacyMethods")
    assert ours.__mro__.index(lacked) > ours.__mro__.index(theirs)
