"""A library's own class of arguments, made before `install()`, and parsers over it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, List, Optional  # noqa: UP035 (as libraries write it)

import pytest
import transformers

import compat
from compat.errors import UnknownArgumentError
from compat.upstream.environment import contained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HFS_PARSER = transformers.HfArgumentParser


@dataclass
class ModelArguments:
    name: str = field(default="tiny")
    trust: bool = field(default=True)
    layers: Optional[List[int]] = field(default=None)  # noqa: UP006, UP045


@dataclass
class DataArguments:
    files: List[str] = field(default_factory=lambda: ["a"])  # noqa: UP006


@pytest.fixture(params=["before, with a mixin", "after"])
def theirs(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A library's arguments, defined before or after `install()`, which is in force."""

    class Mixin:
        pass

    def made(*bases: type) -> Any:
        annotations = {"temperature": Optional[float], "normalize": bool}  # noqa: UP045
        described = {"__annotations__": annotations, "temperature": 0.02, "normalize": True}
        return dataclass(type("Theirs", bases, {**described, "__module__": __name__}))

    is_before = request.param != "after"
    kind = made(Mixin, transformers.Seq2SeqTrainingArguments) if is_before else None
    compat.install()
    try:
        yield kind or made(transformers.TrainingArguments)
    finally:
        compat.uninstall()


@pytest.fixture(params=["ours", "HF's"])
def parser(request: pytest.FixtureRequest) -> Any:
    """The parser that a script gets after `install()`, or has kept from before it in a place of its own."""
    return compat.HfArgumentParser if request.param == "ours" else HFS_PARSER


WORDS = ["--use_cpu", "--report_to", "none", "--output_dir"]


def test_a_command_line_becomes_one_object_for_each_class(theirs: Any, parser: Any, tmp_path: Path) -> None:
    words = [*WORDS, str(tmp_path), "--no_trust", "--no_normalize", "--layers", "1", "2", "--files", "x", "y"]
    kinds = (ModelArguments, DataArguments, theirs)
    model, data, args = parser(kinds).parse_args_into_dataclasses([*words, "--temperature", "0.5"])
    assert (model, data) == (ModelArguments("tiny", trust=False, layers=[1, 2]), DataArguments(["x", "y"]))
    assert type(args) is theirs
    assert (args.output_dir, args.temperature, args.normalize) == (str(tmp_path), 0.5, False)
    assert isinstance(args, compat.TrainingArguments)


def test_it_takes_the_options_of_every_release(theirs: Any, parser: Any, tmp_path: Path) -> None:
    words = [*WORDS, str(tmp_path), "--evaluation_strategy", "epoch", "--save_safetensors", "False"]
    with pytest.warns(FutureWarning):
        (args,) = parser(theirs).parse_args_into_dataclasses(words)
    assert (args.eval_strategy, args.save_safetensors) == ("epoch", False)


def test_ours_takes_flags_and_switches_too(theirs: Any, tmp_path: Path) -> None:
    words = [*WORDS, str(tmp_path), "--no_save_safetensors", "--lightning.profiler", "simple"]
    with pytest.warns(FutureWarning):
        (args,) = compat.HfArgumentParser(theirs).parse_args_into_dataclasses(words)
    assert (args.save_safetensors, args.lightning) == (False, {"profiler": "simple"})


def test_remaining_words_come_last(theirs: Any, parser: Any, tmp_path: Path) -> None:
    words = [*WORDS, str(tmp_path), "--unknown", "1"]
    kinds = (ModelArguments, theirs)
    model, args, remaining = parser(kinds).parse_args_into_dataclasses(words, return_remaining_strings=True)
    assert (type(model), type(args), remaining) == (ModelArguments, theirs, ["--unknown", "1"])
    with pytest.raises(UnknownArgumentError, match="`--unknown`: not used by any of ModelArguments, Theirs"):
        compat.HfArgumentParser(kinds).parse_args_into_dataclasses(words)


def test_options_that_a_script_adds_are_returned(theirs: Any, parser: Any, tmp_path: Path) -> None:
    made = parser(theirs)
    made.add_argument("--mine", type=int)
    args, others = made.parse_args_into_dataclasses([*WORDS, str(tmp_path), "--mine", "3"])
    assert (type(args), vars(others)) == (theirs, {"mine": 3})


@pytest.mark.parametrize("way", ["dict", "json", "yaml"])
def test_dicts_and_files_are_read(theirs: Any, parser: Any, way: str, tmp_path: Path) -> None:
    entries = {
        "name": "large",
        "layers": [3],
        "temperature": 0.25,
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": [],
        "evaluation_strategy": "epoch",
    }
    # JSON is YAML.
    (file := tmp_path / f"arguments.{way}").write_text(json.dumps(entries))
    made = parser((ModelArguments, theirs))
    reading = {"dict": made.parse_dict, "json": made.parse_json_file, "yaml": made.parse_yaml_file}
    with pytest.warns(FutureWarning, match="evaluation_strategy"):
        model, args = reading[way](entries if way == "dict" else file)
    assert model == ModelArguments("large", layers=[3])
    assert (type(args), args.temperature, args.eval_strategy) == (theirs, 0.25, "epoch")


def test_two_classes_of_arguments_fail_as_in_transformers(theirs: Any) -> None:
    messages = []
    for parser in (compat.HfArgumentParser, HFS_PARSER):
        with pytest.raises(Exception, match="conflicting option") as failure:
            parser((transformers.TrainingArguments, theirs))
        messages.append(str(failure.value))
    assert messages[0] == messages[1]


def test_dataclasses_alone_are_read_as_in_transformers(parser: Any) -> None:
    kinds = (ModelArguments, DataArguments)
    compat.install()
    try:
        read = parser(kinds).parse_args_into_dataclasses(["--no_trust", "--layers", "4"])
    finally:
        compat.uninstall()
    assert read == (ModelArguments(trust=False, layers=[4]), DataArguments())


def test_copies_keep_what_was_given(theirs: Any, tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="save_safetensors"):
        args = theirs(str(tmp_path), use_cpu=True, report_to=[], save_safetensors=False, temperature=0.5)
    with pytest.warns(FutureWarning, match="save_safetensors"):
        copied = dataclasses.replace(args, seed=7)
    assert (copied.save_safetensors, copied.temperature, copied.seed) == (False, 0.5, 7)
    assert copied.to_dict()["save_safetensors"] is False


def test_a_constructor_written_by_hand_has_the_options_that_it_takes(parser: Any, tmp_path: Path) -> None:
    @dataclass
    class Written(transformers.TrainingArguments):
        def __init__(self, output_dir: str, **kwargs: Any) -> None:
            super().__init__(output_dir, **kwargs)

    compat.install()
    try:
        read = parser(Written).parse_args_into_dataclasses([*WORDS, str(tmp_path), "--seed", "3"])
    finally:
        compat.uninstall()
    assert [(type(args), args.seed) for args in read] == [(Written, 3)]


def test_fields_are_put_back(tmp_path: Path) -> None:
    @dataclass
    class Theirs(transformers.TrainingArguments):
        mine: int = 1

    before = [each.name for each in dataclasses.fields(Theirs)]
    compat.install()
    assert {"evaluation_strategy", "lightning"} <= {each.name for each in dataclasses.fields(Theirs)}
    compat.uninstall()
    assert [each.name for each in dataclasses.fields(Theirs)] == before
    with contained():  # transformers 4 leaves its settings in the environment
        (args,) = HFS_PARSER(Theirs).parse_args_into_dataclasses([*WORDS, str(tmp_path), "--mine", "2"])
    assert args.mine == 2
