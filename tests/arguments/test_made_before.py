"""Parsers that exist before `install()`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import compat
from compat.errors import UnknownArgumentError
from compat.upstream.environment import contained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HFS_PARSER, HFS_ARGUMENTS = transformers.HfArgumentParser, transformers.TrainingArguments


@dataclass
class Theirs(HFS_ARGUMENTS):
    mine: int = 1


@dataclass
class ModelArguments:
    name: str = "tiny"


class TheirParser(HFS_PARSER):
    pass


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    yield
    compat.uninstall()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return ["--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path)]


@pytest.mark.parametrize("parser_kind", [HFS_PARSER, TheirParser])
@pytest.mark.parametrize("kind", [HFS_ARGUMENTS, Theirs])
def test_they_make_ours_of_the_words_of_every_release(kind: Any, parser_kind: Any, words: list[str]) -> None:
    parser = parser_kind((ModelArguments, kind))
    compat.install()
    asked = ["--name", "large", "--evaluation_strategy", "epoch", "--lightning.profiler", "simple"]
    with pytest.warns(FutureWarning, match="evaluation_strategy"):
        model, args = parser.parse_args_into_dataclasses([*words, *asked])
    assert model == ModelArguments("large")
    assert isinstance(args, compat.TrainingArguments)
    assert isinstance(args, kind)
    assert (args.eval_strategy, args.lightning) == ("epoch", {"profiler": "simple"})


def test_dicts_are_read_too(tmp_path: Path) -> None:
    parser = HFS_PARSER(HFS_ARGUMENTS)
    compat.install()
    with pytest.warns(FutureWarning, match="no_cuda"):
        (args,) = parser.parse_dict({"output_dir": str(tmp_path), "no_cuda": True, "report_to": []})
    assert type(args) is compat.TrainingArguments
    assert args.use_cpu


def test_what_a_script_has_added_is_kept(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = HFS_PARSER(HFS_ARGUMENTS, description="of a script")
    parser.set_defaults(seed=7)
    group = parser.add_argument_group("of mine")
    group.add_argument("--kind", choices={"a": 1, "b": 2}.keys(), default="a")
    compat.install()
    args, others = parser.parse_args_into_dataclasses([*words, "--kind", "b"])
    assert (args.seed, others.kind) == (7, "b")
    parser.print_help()
    shown = capsys.readouterr().out
    assert "of a script" in shown
    assert "of mine:" in shown
    with pytest.raises(UnknownArgumentError, match="`--kynd`: not used"):
        parser.parse_args_into_dataclasses([*words, "--kynd", "b"])


def test_one_of_other_classes_has_their_options_alone() -> None:
    parser = HFS_PARSER(ModelArguments)
    compat.install()
    assert parser.parse_args_into_dataclasses(["--name", "large"]) == (ModelArguments("large"),)
    assert "--lightning" not in parser.format_help()


@pytest.mark.parametrize("kind", [HFS_ARGUMENTS, Theirs])
def test_uninstalling_puts_them_back(kind: Any, words: list[str]) -> None:
    parser = HFS_PARSER(kind)
    help_before = parser.format_help()
    compat.install()
    assert "--lightning" in parser.format_help()
    compat.uninstall()
    assert type(parser) is HFS_PARSER
    assert parser.format_help() == help_before
    with contained():  # transformers 4 leaves its settings in the environment
        (args,) = parser.parse_args_into_dataclasses([*words, "--seed", "3"])
    assert (type(args), args.seed) == (kind, 3)


def test_ours_stay_as_they_are(words: list[str]) -> None:
    parser = compat.HfArgumentParser(compat.TrainingArguments)
    before = dict(vars(parser))
    compat.install()
    assert vars(parser) == before
